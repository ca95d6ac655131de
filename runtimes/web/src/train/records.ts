/** Progress, history and report of `fit`. */

/** The state of a run after an epoch, or before training where there is held-out data. */
export interface EpochRecord {
  /** Epochs completed; 0 before training. */
  readonly epoch: number;
  /** Optimizer steps taken. */
  readonly step: number;
  /** Mean training loss of the epoch; `null` before training. */
  readonly loss: number | null;
  /** Loss on the held-out data; `null` without such data. */
  readonly heldOutLoss: number | null;
  /** Fraction of correct labels, 0 to 1; `null` without held-out data or class labels. */
  readonly heldOutAccuracy: number | null;
  /** Value of the metric by which the adapter was chosen; `null` in this runtime, which chooses it by the loss. */
  readonly heldOutMetric: number | null;
}

/** Passed to `progress` after each optimizer step. */
export interface Progress {
  /** Optimizer steps taken in this call of `fit`. */
  readonly step: number;
  /** Steps that it will take; `null` if unknown. */
  readonly total: number | null;
  /** The current epoch, counted from 1. */
  readonly epoch: number;
  /** Mean loss of the step, before its update. */
  readonly loss: number;
  /** Learning rate of the step. */
  readonly lr: number;
  /** Mean speed of the steps taken by this call. */
  readonly examplesPerSecond: number;
}

/** Passed to `callProgress` before each call of a graph. */
export interface CallProgress {
  /** The current optimizer step, counted from 1 in this call of `fit`. */
  readonly step: number;
  /** Calls of graphs that this step has completed. */
  readonly done: number;
  /** Calls that it consists of. */
  readonly calls: number;
}

/** Returned by `fit`. */
export interface FitReport {
  /** Optimizer steps taken. */
  readonly steps: number;
  /** Examples trained on, repeats counted. */
  readonly examples: number;
  /** Why it ended: `epochs` (all done), `max_steps` or `patience`. */
  readonly stopped: string;
  /** One record per epoch, and one before training where there is held-out data. */
  readonly history: readonly EpochRecord[];
  /** The record whose adapter was kept; `null` without held-out data, where the last adapter is kept. */
  readonly best: EpochRecord | null;
}
