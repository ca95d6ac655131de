/** The training loop: epochs, accumulation, schedule, held-out data, early stopping, checkpoints, resuming. */

import type { Batch } from "../data/batch.js";
import { type Data, type Source, sourceOf } from "../data/datasets.js";
import { DataError } from "../errors.js";
import { type FitOptions, type FullOptions, withDefaults } from "./options.js";
import type { FitReport } from "./records.js";
import { type FitState, type Settings, afterEpoch, afterFit, fitAfterStep, withFit } from "./run.js";
import { type Schedule, scheduleOf, unknownTotal, warmupSteps } from "./schedule.js";
import type { Session } from "./session.js";

/** Trains for some epochs, or resumes: see `Trainer.fit`. */
export async function fit(session: Session, data: Data, options: FitOptions): Promise<FitReport> {
  const full = withDefaults(options);
  const source = sourceOf(data, full.batchSize, full.shuffle ? session.run.seed : null);
  const heldOut = full.validate === undefined ? null : sourceOf(full.validate, full.batchSize);
  const total = totalSteps(source, full);
  if (total === null && full.schedule !== "constant") throw unknownTotal(`the schedule ${full.schedule}`);
  const lr = full.lr ?? session.bundle.manifest.optimizer.lr;
  return new Loop(session, full, lr, warmupSteps(full.warmup, total), source, heldOut, total).run();
}

/** One call of `fit`. All that it knows of the past is in `session.run`, so it can start anywhere. */
class Loop {
  private speed = { examples: 0, seconds: 0 };
  private readonly factor: Schedule;

  constructor(
    private readonly session: Session,
    private readonly options: FullOptions,
    private readonly lr: number,
    private readonly warmup: number,
    private readonly source: Source,
    private readonly heldOut: Source | null,
    private readonly total: number | null,
  ) {
    this.factor = scheduleOf(options.schedule, warmup);
  }

  private get fit(): FitState {
    return this.session.run.fits.at(-1)!;
  }

  /** The settings that must be equal when this call is resumed; the checkpoint records them. */
  private identity(): Settings {
    const { epochs, batchSize, accumulate, schedule, shuffle, patience, maxSteps } = this.options;
    return {
      ...{ epochs, batchSize, accumulate, schedule, shuffle, patience, maxSteps },
      lr: this.lr,
      warmup: this.warmup,
      totalSteps: this.total,
      trainingExamples: this.source.examples,
      trainingData: this.source.fingerprint,
      heldOutExamples: this.heldOut?.examples ?? null,
      heldOutData: this.heldOut?.fingerprint ?? null,
    };
  }

  /** Starts or resumes, and trains to the end. A run that is aborted is saved as it is. */
  async run(): Promise<FitReport> {
    try {
      return await this.train();
    } catch (failure) {
      if (this.options.signal?.aborted) await this.session.save();
      throw failure;
    }
  }

  private async train(): Promise<FitReport> {
    const finished = this.session.startFit(this.identity());
    if (finished !== null) return finished;
    if (this.heldOut !== null && this.fit.history.length === 0) await this.closeEpoch(0);
    await this.pick();
    let stopped: string | null;
    while ((stopped = this.reasonToStop()) === null) await this.epoch();
    this.session.run = afterFit(this.session.run, stopped);
    await this.session.save();
    return this.session.endFit(this.fit);
  }

  /** Lets the first batches decide which elements train. */
  private async pick(): Promise<void> {
    if (!this.session.mustPick) return;
    const count = Math.max(...this.session.bundle.manifest.sparse.map((spec) => spec.batches));
    const first: Batch[] = [];
    for await (const batch of this.source.batches(0)) if (first.push(batch) >= count) break;
    await this.session.pick(first);
  }

  /** Returns why there is no further epoch. An epoch that was cut short is closed first, like a whole one. */
  private reasonToStop(): string | null {
    const { batches, epochsSinceBest, epoch } = this.fit;
    if (batches > 0) return null;
    if (this.options.patience !== null && epochsSinceBest >= this.options.patience) return "patience";
    if (this.atMaxSteps) return "max_steps";
    return epoch >= this.options.epochs ? "epochs" : null;
  }

  private get atMaxSteps(): boolean {
    return this.options.maxSteps !== null && this.fit.steps >= this.options.maxSteps;
  }

  private async epoch(): Promise<void> {
    let group: Batch[] = [];
    if (!this.atMaxSteps) {
      for await (const batch of this.source.batches(this.fit.epoch, this.fit.batches)) {
        group.push(batch);
        if (group.length < this.options.accumulate) continue;
        await this.step(group);
        group = [];
        if (this.atMaxSteps) break;
      }
      if (group.length > 0) await this.step(group);
    }
    if (this.fit.batches === 0) {
      const context = `epoch ${this.fit.epoch + 1}`;
      throw new DataError("no-data", "The data has no batches.", context, "pass at least one batch.");
    }
    await this.closeEpoch(this.fit.epoch + 1);
  }

  private async step(group: readonly Batch[]): Promise<void> {
    const lr = this.lr * this.factor(this.fit.steps, this.total ?? 0);
    const start = performance.now();
    const { saveEvery, progress, callProgress, signal } = this.options;
    const between = async (done: number, calls: number): Promise<void> => {
      await callProgress?.({ step: this.fit.steps + 1, done, calls });
      signal?.throwIfAborted();
    };
    const { run, step, examples } = await this.session.nextRun(group, lr, between);
    this.speed.examples += examples;
    this.speed.seconds += (performance.now() - start) / 1000;
    const fit = fitAfterStep(this.fit, step, examples, group.length);
    this.session.run = withFit(run, fit);
    if (saveEvery !== null && fit.steps % saveEvery === 0) await this.session.save();
    await progress?.({
      step: fit.steps,
      total: this.total,
      epoch: fit.epoch + 1,
      loss: step.lossSum / step.lossWeight,
      lr,
      examplesPerSecond: this.speed.examples / Math.max(this.speed.seconds, 1e-9),
    });
    signal?.throwIfAborted();
  }

  /** Evaluates, then adds the record and keeps the best parameters in one change of the run. */
  private async closeEpoch(epoch: number): Promise<void> {
    const evaluation =
      this.heldOut === null
        ? null
        : await this.session.evaluate(this.heldOut, () => this.options.signal?.throwIfAborted());
    this.session.run = afterEpoch(this.session.run, epoch, evaluation);
    await this.session.save();
  }
}

function totalSteps({ count }: Source, { epochs, accumulate, maxSteps }: FullOptions): number | null {
  if (count === null) return maxSteps;
  const total = epochs * Math.ceil(count / accumulate);
  return maxSteps === null ? total : Math.min(total, maxSteps);
}
