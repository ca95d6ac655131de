/** Errors that a user can meet. Each says what failed, where, and how to fix it. */

import { printable } from "./shown.js";

/** A mistake in the input of edgepeft, never one in edgepeft itself. */
export class EdgepeftError extends Error {
  override readonly name: string = "EdgepeftError";
  readonly context: string | null;
  readonly hint: string | null;

  /**
   * @param code kebab-case name of the cause, as docs/ERRORS.md lists it; stable, so that programs may look for it.
   * @param message one sentence that says what failed.
   * @param context the facts of this case; `null` where the message contains them all.
   * @param hint how to fix it; `null` if there is no sensible advice.
   *
   * Texts may quote untrusted files: long texts are truncated, and unprintable characters are escaped.
   */
  constructor(
    readonly code: string,
    message: string,
    context: string | null,
    hint: string | null,
  ) {
    super(printable(message));
    this.context = context === null ? null : printable(context);
    this.hint = hint === null ? null : printable(hint);
  }

  override toString(): string {
    return [this.message, this.context, this.hint && `hint: ${this.hint}`].filter(Boolean).join("\n");
  }

  /** Returns the error as the command prints it, several lines. */
  render(): string {
    const lines = (this.context ?? "").split("\n").map((line, i) => (i === 0 ? "╰─> " : "    ") + line);
    const context = this.context === null ? [] : lines;
    const hint = this.hint === null ? [] : [`hint: ${this.hint}`];
    return [`error: ${this.code}`, `× ${this.message}`, ...context, ...hint].join("\n");
  }
}

/** The constructor of a class of errors: whoever has a file read says which error it raises. */
export type ErrorClass = new (...args: ConstructorParameters<typeof EdgepeftError>) => EdgepeftError;

/** A bundle that is missing, damaged, or of a format this runtime does not know. */
export class BundleError extends EdgepeftError {
  override readonly name = "BundleError";
}

/** A batch that does not fit the bundle: name, dtype, shape, label or value. */
export class BatchError extends EdgepeftError {
  override readonly name = "BatchError";
}

/** A data set that cannot be read, or contains nothing to train on. */
export class DataError extends EdgepeftError {
  override readonly name = "DataError";
}

/** A state that is damaged, in use, or belongs to another run. */
export class StateError extends EdgepeftError {
  override readonly name = "StateError";
}

/** A run that cannot continue: a loss or a gradient that is not finite, a setting out of range. */
export class TrainingError extends EdgepeftError {
  override readonly name = "TrainingError";
}

/** A round, an identity or a delivery that is refused, or a server that cannot be reached. */
export class FleetError extends EdgepeftError {
  override readonly name = "FleetError";
}
