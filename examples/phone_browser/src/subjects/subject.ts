/** What a user teaches: how an example is entered, drawn small, and read by the model. */

import type { Inputs, SubjectName } from "../messages.js";

export interface Subject<C = unknown> {
  readonly name: SubjectName;
  /** Returns what is entered now; `null` if there is nothing. */
  current(): C | null;
  /** Empties what is entered. */
  clear(): void;
  /** Returns the inputs of the model for examples. */
  inputs(contents: readonly C[]): Inputs;
  /** Returns a small picture of an example. */
  thumbnail(content: C): HTMLElement;
}

/** Called when what is entered has changed. */
export type Changed = () => void;
