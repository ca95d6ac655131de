/** The training loop: epochs, accumulation, schedule, held-out data, early stopping, checkpoints, resuming. */

import type { Batch } from "../data/batch.js";
import { type Data, type Source, sourceOf } from "../data/datasets.js";
import { DataError, StateError, TrainingError } from "../errors.js";
import { type Evaluation, type Fit, type Line, type Settings, newFit, withFit } from "./run.js";
import { type Schedule, type ScheduleName, scheduleOf, unknownTotal, warmupSteps } from "./schedule.js";
import type { Trainer } from "./trainer.js";

/** Settings of `fit`, with the defaults of the Python runtime. */
export interface FitOptions {
  /** Passes over the data: 1. */
  readonly epochs?: number;
  /** Examples per batch: 8; ready-made batches are taken as they are. */
  readonly batchSize?: number;
  /** Batches per optimizer step: 1. */
  readonly accumulate?: number;
  /** Highest learning rate: the bundle's. */
  readonly lr?: number;
  /** `constant`, `linear` or `cosine`. */
  readonly schedule?: ScheduleName;
  /** Rise of the learning rate, as steps or as `{ share }` of all steps. */
  readonly warmup?: number | { readonly share: number };
  /** Whether to draw a new order in each epoch: true. */
  readonly shuffle?: boolean;
  /** Held-out data, evaluated before training and after each epoch; the best adapter is kept. */
  readonly validate?: Data;
  /** Stop after so many epochs without a better held-out loss. */
  readonly patience?: number;
  /** Optimizer steps between checkpoints: 50; `null`: after epochs only. */
  readonly saveEvery?: number | null;
  /** Stop after so many optimizer steps. */
  readonly maxSteps?: number;
  /** Called after each optimizer step, and waited for. */
  readonly progress?: (progress: Progress) => void | Promise<void>;
  /** Ends the call after the step under way: the run is saved, and the signal's reason thrown. */
  readonly signal?: AbortSignal;
}

/** `step` of `total` (`null`: unknown), epoch counted from 1. */
export interface Progress {
  readonly step: number;
  readonly total: number | null;
  readonly epoch: number;
  readonly loss: number;
  readonly lr: number;
  readonly examplesPerSecond: number;
}

/** What `fit` did: `stopped` is `epochs`, `max_steps` or `patience`; `best` is the line whose adapter was kept. */
export interface Report {
  readonly steps: number;
  readonly examples: number;
  readonly stopped: string;
  readonly history: readonly Line[];
  readonly best: Line | null;
}

/** What must be the same when a call is resumed; kept in the checkpoint. */
interface Plan {
  readonly epochs: number;
  readonly batchSize: number;
  readonly accumulate: number;
  readonly lr: number;
  readonly schedule: ScheduleName;
  readonly warmup: number;
  readonly shuffle: boolean;
  readonly patience: number | null;
  readonly maxSteps: number | null;
  readonly totalSteps: number | null;
  readonly trainingExamples: number | null;
  readonly trainingData: string | null;
  readonly heldOutExamples: number | null;
  readonly heldOutData: string | null;
}

/** See `Trainer.fit`. */
export async function fit(trainer: Trainer, data: Data, options: FitOptions): Promise<Report> {
  const { epochs = 1, batchSize = 8, accumulate = 1, schedule = "constant", warmup = 0, shuffle = true } = options;
  const { patience = null, maxSteps = null, saveEvery = 50, validate } = options;
  const counts = { epochs, batchSize, accumulate, patience, maxSteps, saveEvery };
  for (const [name, count] of Object.entries(counts)) if (count !== null) positive(name, count);
  if (patience !== null && validate === undefined) {
    throw new TrainingError(
      "bad-setting",
      "patience needs held-out data.",
      "patience without validate",
      "pass validate.",
    );
  }
  const source = sourceOf(data, batchSize, shuffle ? trainer.seed : null);
  const heldOut = validate === undefined ? null : sourceOf(validate, batchSize);
  const total = totalSteps(source, epochs, accumulate, maxSteps);
  if (total === null && schedule !== "constant") throw unknownTotal(`the schedule ${schedule}`);
  const plan: Plan = {
    epochs,
    batchSize,
    accumulate,
    lr: options.lr ?? trainer.bundle.manifest.optimizer.lr,
    schedule,
    warmup: warmupSteps(warmup, total),
    shuffle,
    patience,
    maxSteps,
    totalSteps: total,
    trainingExamples: source.examples,
    trainingData: source.fingerprint,
    heldOutExamples: heldOut?.examples ?? null,
    heldOutData: heldOut?.fingerprint ?? null,
  };
  return new Loop(trainer, plan, source, heldOut, { ...options, saveEvery }).run();
}

/** One call under way. All it knows of the past is in `trainer.run`, so it can begin anywhere. */
class Loop {
  private trained = { examples: 0, seconds: 0 };
  private readonly factor: Schedule;

  constructor(
    private readonly trainer: Trainer,
    private readonly plan: Plan,
    private readonly source: Source,
    private readonly heldOut: Source | null,
    private readonly options: FitOptions,
  ) {
    this.factor = scheduleOf(plan.schedule, plan.warmup);
  }

  private get fit(): Fit {
    return this.trainer.run.fits.at(-1)!;
  }

  async run(): Promise<Report> {
    const finished = begin(this.trainer, { ...this.plan });
    if (finished !== null) return finished;
    if (this.heldOut !== null && this.fit.history.length === 0) await this.closeEpoch(0);
    await this.pick();
    let stopped: string | null;
    while ((stopped = this.stopped()) === null) await this.epoch();
    await this.finish(stopped);
    this.trainer.finishedFits += 1;
    return reportOf(this.fit);
  }

  /** Lets the first batches decide which elements train. */
  private async pick(): Promise<void> {
    if (!this.trainer.mustPick) return;
    const count = Math.max(...this.trainer.bundle.manifest.sparse.map((spec) => spec.batches));
    const first: Batch[] = [];
    for await (const batch of this.source.batches(0)) if (first.push(batch) >= count) break;
    await this.trainer.pick(first);
  }

  /** Why there is no further epoch; never within one, as an epoch cut short is closed like a whole one. */
  private stopped(): string | null {
    const { batches, epochsSinceBest, epoch } = this.fit;
    if (batches > 0) return null;
    if (this.plan.patience !== null && epochsSinceBest >= this.plan.patience) return "patience";
    if (this.full) return "max_steps";
    return epoch >= this.plan.epochs ? "epochs" : null;
  }

  private get full(): boolean {
    return this.plan.maxSteps !== null && this.fit.steps >= this.plan.maxSteps;
  }

  private async epoch(): Promise<void> {
    let group: Batch[] = [];
    if (!this.full) {
      for await (const batch of this.source.batches(this.fit.epoch, this.fit.batches)) {
        group.push(batch);
        if (group.length < this.plan.accumulate) continue;
        await this.step(group);
        group = [];
        if (this.full) break;
      }
      if (group.length > 0) await this.step(group);
    }
    if (this.fit.batches === 0) {
      throw new DataError(
        "no-data",
        "The data gives no batches.",
        `epoch ${this.fit.epoch + 1}`,
        "pass at least one batch.",
      );
    }
    await this.closeEpoch(this.fit.epoch + 1);
  }

  private async step(group: readonly Batch[]): Promise<void> {
    const lr = this.plan.lr * this.factor(this.fit.steps, this.plan.totalSteps ?? 0);
    const start = performance.now();
    const { run, step, examples } = await this.trainer.nextRun(group, lr);
    this.trained.examples += examples;
    this.trained.seconds += (performance.now() - start) / 1000;
    const fit = {
      ...this.fit,
      steps: this.fit.steps + 1,
      examples: this.fit.examples + examples,
      batches: this.fit.batches + group.length,
      lossSum: this.fit.lossSum + step.lossSum,
      lossWeight: this.fit.lossWeight + step.lossWeight,
    };
    this.trainer.run = withFit(run, fit);
    const { saveEvery, progress, signal } = this.options;
    if (saveEvery && fit.steps % saveEvery === 0) await this.save();
    await progress?.({
      step: fit.steps,
      total: this.plan.totalSteps,
      epoch: fit.epoch + 1,
      loss: step.lossSum / step.lossWeight,
      lr,
      examplesPerSecond: this.trained.examples / Math.max(this.trained.seconds, 1e-9),
    });
    if (signal?.aborted) {
      await this.save();
      signal.throwIfAborted();
    }
  }

  /** Evaluates, notes the best, and writes the line of the history: all in one change of the run. */
  private async closeEpoch(epoch: number): Promise<void> {
    const { trainer, fit } = this;
    const loss = fit.lossWeight > 0 ? fit.lossSum / fit.lossWeight : null;
    const evaluation = this.heldOut === null ? null : await trainer.evaluateSource(this.heldOut);
    const heldOut = { heldOutLoss: evaluation?.loss ?? null, heldOutAccuracy: evaluation?.accuracy ?? null };
    const history = [...fit.history, { epoch, step: fit.steps, loss, ...heldOut }];
    const after = { ...fit, epoch, batches: 0, lossSum: 0, lossWeight: 0, history };
    const run = { ...trainer.run, lossAfter: loss ?? trainer.run.lossAfter };
    if (evaluation === null) {
      trainer.run = withFit(run, after);
    } else {
      const better = this.isBetter(evaluation);
      const noted = better
        ? { best: fit.history.length, epochsSinceBest: 0 }
        : { epochsSinceBest: fit.epochsSinceBest + 1 };
      const losses = { heldOutBefore: run.heldOutBefore ?? evaluation.loss, heldOutAfter: evaluation.loss };
      trainer.run = { ...withFit(run, { ...after, ...noted }), ...losses, best: better ? run.values : run.best };
    }
    await this.save();
  }

  private isBetter({ loss }: Evaluation): boolean {
    const best = this.fit.best === null ? null : (this.fit.history[this.fit.best]?.heldOutLoss ?? null);
    return Number.isFinite(loss) && (best === null || loss < best);
  }

  /** Restores the best adapter, and marks the call as done. */
  private async finish(stopped: string): Promise<void> {
    const { trainer, fit } = this;
    const run = withFit(trainer.run, { ...fit, stopped });
    if (run.best !== null && fit.best !== null) {
      // The optimizer's state stays that of the last step: it is of use only to whoever trains on.
      const values = { parameters: run.best.parameters, state: run.values.state };
      trainer.run = { ...run, values, best: null, heldOutAfter: fit.history[fit.best]!.heldOutLoss };
    } else trainer.run = run;
    await this.save();
  }

  private async save(): Promise<void> {
    if (this.trainer.keepsState) await this.trainer.save();
  }
}

function reportOf({ steps, examples, stopped, history, best }: Fit): Report {
  return { steps, examples, stopped: stopped ?? "", history, best: best === null ? null : history[best]! };
}

/** Finds the call of `fit` to go on with, or begins one; its report, if it finished in an earlier process. */
function begin(trainer: Trainer, settings: Settings): Report | null {
  let { fits } = trainer.run;
  const resumed = trainer.finishedFits < trainer.resumedFits ? fits[trainer.finishedFits] : undefined;
  if (resumed !== undefined) {
    checkSame(resumed.settings, settings);
    if (resumed.stopped === null) return null;
    trainer.finishedFits += 1;
    return reportOf(resumed);
  }
  const last = fits.at(-1);
  if (last !== undefined && last.stopped === null) {
    if (differing(last.settings, settings).length === 0) return null;
    // In one process whoever calls with new settings after an interrupt means it: the old call ends here.
    fits = [...fits.slice(0, -1), { ...last, stopped: "interrupted" }];
  }
  trainer.run = { ...trainer.run, fits: [...fits, newFit(settings)], best: null };
  return null;
}

function differing(kept: Settings, given: Settings): string[] {
  return Object.keys(given).filter((name) => kept[name] !== given[name]);
}

function checkSame(kept: Settings, given: Settings): void {
  const names = differing(kept, given);
  if (names.length === 0) return;
  const context = names.map((name) => `${name}: this run ${given[name]}, the state ${kept[name]}`).join("\n");
  const hint = "use the settings and data the run was begun with, or begin anew in another state.";
  throw new StateError("other-settings", "The state holds a run with other settings or other data.", context, hint);
}

function totalSteps(source: Source, epochs: number, accumulate: number, maxSteps: number | null): number | null {
  if (source.count === null) return maxSteps;
  const total = epochs * Math.ceil(source.count / accumulate);
  return maxSteps === null ? total : Math.min(total, maxSteps);
}

/** The setting, if it is a whole number of at least 1. */
export function positive(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value >= 1) return value;
  throw new TrainingError("bad-setting", `${name} must be a whole number of at least 1.`, `found ${value}`, null);
}
