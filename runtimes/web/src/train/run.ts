/** The state of a run as values, replaced as a whole after each step, so that an interrupt cannot tear it. */

import type { Step, TrainState } from "../engine/engine.js";
import type { Evaluation } from "../engine/evaluate.js";
import * as f from "../files/fields.js";
import type { EpochRecord, FitReport } from "./records.js";

/** The settings that must be equal when a call of `fit` is resumed, as plain JSON values. */
export type Settings = Readonly<Record<string, unknown>>;

/** One call of `fit`: its settings and its progress. */
export interface FitState {
  readonly settings: Settings;
  /** Optimizer steps taken. */
  readonly steps: number;
  /** Examples trained on, repeats counted. */
  readonly examples: number;
  /** Epochs completed. */
  readonly epoch: number;
  /** Batches used of the current epoch. */
  readonly batches: number;
  /** Weighted sum of the losses of the current epoch. */
  readonly lossSum: number;
  /** Sum of their weights. */
  readonly lossWeight: number;
  /** Epochs since the best held-out loss. */
  readonly epochsSinceBest: number;
  /** Index of the best record in `history`. */
  readonly best: number | null;
  /** Why the call ended; `null` while it is unfinished. */
  readonly stopped: string | null;
  readonly history: readonly EpochRecord[];
}

/** A run: everything that a checkpoint keeps. */
export interface Run {
  readonly state: TrainState;
  /** State with the best held-out loss of the current call of `fit`. */
  readonly best: TrainState | null;
  /** Seed of the shuffling. */
  readonly seed: number;
  /** Optimizer steps taken. */
  readonly step: number;
  /** Examples trained on, repeats counted. */
  readonly examples: number;
  /** Training loss of the first step. */
  readonly lossBefore: number | null;
  /** Training loss of the last step or, after an epoch, the mean of the epoch. */
  readonly lossAfter: number | null;
  /** First held-out loss. */
  readonly heldOutBefore: number | null;
  /** Held-out loss of the current parameters; `null` if unknown. */
  readonly heldOutAfter: number | null;
  readonly fits: readonly FitState[];
}

export function newFit(settings: Settings): FitState {
  const nothing = { steps: 0, examples: 0, epoch: 0, batches: 0, lossSum: 0, lossWeight: 0, epochsSinceBest: 0 };
  return { settings, ...nothing, best: null, stopped: null, history: [] };
}

export function newRun(state: TrainState, seed: number): Run {
  const unknown = { lossBefore: null, lossAfter: null, heldOutBefore: null, heldOutAfter: null };
  return { state, best: null, seed, step: 0, examples: 0, ...unknown, fits: [] };
}

/** Returns the run after an optimizer step. */
export function afterStep(run: Run, { state, lossSum, lossWeight }: Step, examples: number): Run {
  const loss = lossSum / lossWeight;
  const losses = { lossBefore: run.lossBefore ?? loss, lossAfter: loss, heldOutAfter: null };
  return { ...run, state, step: run.step + 1, examples: run.examples + examples, ...losses };
}

/** Returns the current call of `fit` after an optimizer step. */
export function fitAfterStep(
  fit: FitState,
  { lossSum, lossWeight }: Step,
  examples: number,
  batches: number,
): FitState {
  return {
    ...fit,
    steps: fit.steps + 1,
    examples: fit.examples + examples,
    batches: fit.batches + batches,
    lossSum: fit.lossSum + lossSum,
    lossWeight: fit.lossWeight + lossWeight,
  };
}

/** Returns the run at the start of the next epoch; a better held-out loss becomes the best. */
export function afterEpoch(run: Run, epoch: number, evaluation: Evaluation | null): Run {
  const fit = run.fits.at(-1)!;
  const loss = fit.lossWeight > 0 ? fit.lossSum / fit.lossWeight : null;
  const heldOut = { heldOutLoss: evaluation?.loss ?? null, heldOutAccuracy: evaluation?.accuracy ?? null };
  const history = [...fit.history, { epoch, step: fit.steps, loss, ...heldOut, heldOutMetric: null }];
  const next = { ...fit, epoch, batches: 0, lossSum: 0, lossWeight: 0, history };
  const trained = { ...run, lossAfter: loss ?? run.lossAfter };
  if (evaluation === null) return withFit(trained, next);
  const better = isBetter(fit, evaluation);
  const best = better ? fit.history.length : fit.best;
  return {
    ...withFit(trained, { ...next, best, epochsSinceBest: better ? 0 : fit.epochsSinceBest + 1 }),
    best: better ? run.state : run.best,
    heldOutBefore: run.heldOutBefore ?? evaluation.loss,
    heldOutAfter: evaluation.loss,
  };
}

/** Returns the run at the end of the current call of `fit`, with the best parameters. */
export function afterFit(run: Run, stopped: string): Run {
  const fit = run.fits.at(-1)!;
  const ended = withFit(run, { ...fit, stopped });
  if (ended.best === null || fit.best === null) return ended;
  // The optimizer's state stays that of the last step: only further training uses it.
  const state = { parameters: ended.best.parameters, optimizer: ended.state.optimizer };
  return { ...ended, state, best: null, heldOutAfter: fit.history[fit.best]!.heldOutLoss };
}

/**
 * Returns the run with the last call of `fit` unfinished again, under settings of more epochs. If that call had
 * finished with held-out data, training continues from the adapter that it kept.
 */
export function withMoreEpochs(run: Run, settings: Settings): Run {
  const fit = run.fits.at(-1)!;
  const kept = fit.stopped !== null && fit.best !== null;
  return withFit(kept ? { ...run, best: run.state } : run, { ...fit, settings, stopped: null });
}

/** Returns the run with another state of the current call of `fit`. */
export function withFit(run: Run, fit: FitState): Run {
  return { ...run, fits: [...run.fits.slice(0, -1), fit] };
}

/** Returns the report for the caller of `fit`. */
export function reportOf({ steps, examples, stopped, history, best }: FitState): FitReport {
  return { steps, examples, stopped: stopped ?? "", history, best: best === null ? null : history[best]! };
}

function isBetter(fit: FitState, { loss }: Evaluation): boolean {
  const best = fit.best === null ? null : (fit.history[fit.best]?.heldOutLoss ?? null);
  return Number.isFinite(loss) && (best === null || loss < best);
}

/** JSON has no numbers that are not finite: they are texts. */
const NOT_FINITE = ["NaN", "Infinity", "-Infinity"];
const loss: f.Reader<number | null> = (value, where) => {
  return NOT_FINITE.includes(value as string) ? Number(value) : f.nullable(f.number)(value, where);
};
const record = f.object({
  epoch: f.natural,
  step: f.natural,
  loss,
  held_out_loss: loss,
  held_out_accuracy: loss,
  held_out_metric: f.optional(loss, null),
});
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
  history: f.list(record),
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

/** Returns everything but the tensors as JSON, under the names that the Python runtime uses. */
export function runJson(run: Run): string {
  const { state: _state, best: _best, ...rest } = run;
  return JSON.stringify(renamed(rest, (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)));
}

/** Reads what {@link runJson} wrote. @throws Wrong the text is something else. */
export function runOf(json: string, state: TrainState, best: TrainState | null): Run {
  const read = plain(f.parseJson(new TextEncoder().encode(json), "run"), "run");
  const camel = renamed(read, (name) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()));
  return { ...(camel as Omit<Run, "state" | "best">), state, best };
}

function renamed(value: unknown, rename: (name: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [rename(name), renamed(item, rename)]));
}
