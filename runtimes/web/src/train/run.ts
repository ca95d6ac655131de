/** The run so far as values: replaced as a whole after each step, so an interrupt never finds it half changed. */

import type { Step, Values } from "../engine/engine.js";
import * as f from "../files/fields.js";

/** Loss (weighted mean over the data), accuracy (0 to 1; `null` without class labels), number of examples. */
export interface Evaluation {
  readonly loss: number;
  readonly accuracy: number | null;
  readonly examples: number;
}

/** One line of the history: after `epoch` epochs and `step` steps (0: before training); `null` where there is none. */
export interface Line {
  readonly epoch: number;
  readonly step: number;
  readonly loss: number | null;
  readonly heldOutLoss: number | null;
  readonly heldOutAccuracy: number | null;
}

export type Settings = Readonly<Record<string, unknown>>;

/** One call of `fit`: its settings, what it has done, and the sums and the batches used of the current epoch. */
export interface Fit {
  readonly settings: Settings;
  readonly steps: number;
  readonly examples: number;
  readonly epoch: number;
  readonly batches: number;
  readonly lossSum: number;
  readonly lossWeight: number;
  /** Epochs since the best held-out loss, whose line of the history is `best`. */
  readonly epochsSinceBest: number;
  readonly best: number | null;
  readonly stopped: string | null;
  readonly history: readonly Line[];
}

/** Everything a run consists of; losses are of the first and the last step, held-out ones where there was such data. */
export interface Run {
  readonly values: Values;
  readonly best: Values | null;
  readonly seed: number;
  readonly step: number;
  readonly examples: number;
  readonly lossBefore: number | null;
  readonly lossAfter: number | null;
  readonly heldOutBefore: number | null;
  readonly heldOutAfter: number | null;
  readonly fits: readonly Fit[];
}

export function newFit(settings: Settings): Fit {
  const nothing = { steps: 0, examples: 0, epoch: 0, batches: 0, lossSum: 0, lossWeight: 0, epochsSinceBest: 0 };
  return { settings, ...nothing, best: null, stopped: null, history: [] };
}

export function newRun(values: Values, seed: number): Run {
  const unknown = { lossBefore: null, lossAfter: null, heldOutBefore: null, heldOutAfter: null };
  return { values, best: null, seed, step: 0, examples: 0, ...unknown, fits: [] };
}

/** One optimizer step further. */
export function afterStep(run: Run, { values, lossSum, lossWeight }: Step, examples: number): Run {
  const loss = lossSum / lossWeight;
  const losses = { lossBefore: run.lossBefore ?? loss, lossAfter: loss, heldOutAfter: null };
  return { ...run, values, step: run.step + 1, examples: run.examples + examples, ...losses };
}

/** With the last call of `fit` where it is now. */
export function withFit(run: Run, fit: Fit): Run {
  return { ...run, fits: [...run.fits.slice(0, -1), fit] };
}

/** Of a loss that is not finite JSON has only the name. */
const NOT_FINITE = ["NaN", "Infinity", "-Infinity"];
const loss: f.Reader<number | null> = (value, where) => {
  return NOT_FINITE.includes(value as string) ? Number(value) : f.nullable(f.number)(value, where);
};
const line = f.object({ epoch: f.natural, step: f.natural, loss, held_out_loss: loss, held_out_accuracy: loss });
const fit = f.object({
  settings: f.anyObject,
  steps: f.natural,
  examples: f.natural,
  epoch: f.natural,
  batches: f.natural,
  loss_sum: f.number,
  loss_weight: f.number,
  epochs_since_best: f.natural,
  best: f.nullable(f.natural),
  stopped: f.nullable(f.text),
  history: f.list(line),
});
const plain = f.object({
  seed: f.natural,
  step: f.natural,
  examples: f.natural,
  loss_before: loss,
  loss_after: loss,
  held_out_before: loss,
  held_out_after: loss,
  fits: f.list(fit),
});

/** Everything but the tensors, as JSON, with the names that the Python runtime gives them. */
export function runJson(run: Run): string {
  const { values: _values, best: _best, ...rest } = run;
  return JSON.stringify(renamed(rest, (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)));
}

/** The run that {@link runJson} wrote. @throws Wrong the text is another. */
export function runOf(json: string, values: Values, best: Values | null): Run {
  const read = plain(f.parseJson(new TextEncoder().encode(json), "run"), "run");
  const camel = renamed(read, (name) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()));
  return { ...(camel as Omit<Run, "values" | "best">), values, best };
}

function renamed(value: unknown, rename: (name: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [rename(name), renamed(item, rename)]));
}
