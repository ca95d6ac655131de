/** The settings of `fit`. */

import { positive } from "../checks.js";
import type { Data } from "../data/datasets.js";
import { TrainingError } from "../errors.js";
import type { CallProgress, Progress } from "./records.js";
import type { ScheduleName } from "./schedule.js";

/** Settings of `fit`, with the defaults of the Python runtime. */
export interface FitOptions {
  /** Passes over the data: 1. */
  readonly epochs?: number;
  /** Examples per batch: 8. Batches that come ready-made keep their size. */
  readonly batchSize?: number;
  /** Batches per optimizer step: 1. */
  readonly accumulate?: number;
  /** Highest learning rate: the bundle's. */
  readonly lr?: number;
  /** `constant`, `linear` or `cosine`: `constant`. */
  readonly schedule?: ScheduleName;
  /** Steps over which the learning rate rises from 0, or their `fraction` of all steps: 0. */
  readonly warmup?: number | { readonly fraction: number };
  /** Whether to draw a new order in each epoch: true. */
  readonly shuffle?: boolean;
  /** Held-out data, evaluated before training and after each epoch; the best adapter is kept. */
  readonly validate?: Data;
  /** Stop after this many epochs without a better held-out loss. */
  readonly patience?: number | null;
  /** Optimizer steps between checkpoints: 50; `null` saves after epochs only. */
  readonly saveEvery?: number | null;
  /** Stop after this many optimizer steps. */
  readonly maxSteps?: number | null;
  /** Called after each optimizer step, and awaited. */
  readonly progress?: (progress: Progress) => void | Promise<void>;
  /** Called within a step, before each of its calls of a graph, and awaited: a step of a large model takes seconds. */
  readonly callProgress?: (progress: CallProgress) => void | Promise<void>;
  /** Ends `fit` before the next call of a graph: the completed steps are saved, and the signal's reason is thrown. */
  readonly signal?: AbortSignal;
}

const DEFAULTS = {
  epochs: 1,
  batchSize: 8,
  accumulate: 1,
  schedule: "constant",
  warmup: 0,
  shuffle: true,
  patience: null,
  saveEvery: 50,
  maxSteps: null,
} as const;

/** Settings with their defaults. */
export type FullOptions = FitOptions & Required<Pick<FitOptions, keyof typeof DEFAULTS>>;

/** Returns the settings with their defaults. @throws TrainingError a setting is out of range. */
export function withDefaults(options: FitOptions): FullOptions {
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  const full: FullOptions = { ...DEFAULTS, ...Object.fromEntries(given) };
  for (const name of ["epochs", "batchSize", "accumulate", "patience", "saveEvery", "maxSteps"] as const) {
    const value = full[name];
    if (value !== null) positive(name, value);
  }
  if (full.patience !== null && full.validate === undefined) {
    const context = "patience without validate";
    throw new TrainingError("bad-setting", "patience needs held-out data.", context, "pass validate.");
  }
  return full;
}
