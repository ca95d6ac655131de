/** A run in this process: its values, the engine that changes them, and the store that keeps them. */

import type { LoadedAdapter } from "../bundle/adapter_source.js";
import type { Bundle } from "../bundle/bundle.js";
import { require } from "../checks.js";
import { type Batch, checkedBatch, examplesIn } from "../data/batch.js";
import type { Source } from "../data/datasets.js";
import type { Engine, Step, TrainState } from "../engine/engine.js";
import { type Evaluation, evaluate } from "../engine/evaluate.js";
import type { BetweenCalls } from "../engine/program.js";
import { StateError, TrainingError } from "../errors.js";
import { Wrong } from "../files/fields.js";
import { notFinite } from "../files/tensors.js";
import type { Checkpoints } from "./checkpoint.js";
import type { FitReport } from "./records.js";
import {
  type FitState,
  type Run,
  type Settings,
  afterStep,
  newFit,
  newRun,
  reportOf,
  runJson,
  runOf,
  withMoreEpochs,
} from "./run.js";
import { pick, toPick } from "./selection.js";

/** The state that a trainer and its training loop share. */
export class Session {
  /** The run so far; replaced as a whole after each step. */
  run: Run;
  readonly adapterSha256: string;
  private resumedFits = 0;
  private finishedFits = 0;

  constructor(
    readonly bundle: Bundle,
    readonly engine: Engine,
    adapter: LoadedAdapter,
    seed: number,
    private readonly checkpoints: Checkpoints | null,
    private readonly replays = true,
  ) {
    this.run = newRun(engine.load(adapter.parameters), seed);
    this.adapterSha256 = adapter.sha256;
  }

  /** Releases the graphs and the store, without saving. */
  async close(): Promise<void> {
    await this.engine.close();
    await this.checkpoints?.close();
  }

  /** Computes one optimizer step, without changing `run`: the run after it, the step, and its number of examples. */
  async nextRun(
    batches: readonly Batch[],
    lr: number,
    between?: BetweenCalls,
  ): Promise<{ run: Run; step: Step; examples: number }> {
    require("lr", lr, Number.isFinite(lr) && lr >= 0, "a finite learning rate, 0 or more");
    const { manifest } = this.bundle;
    const checked = batches.map((batch) => checkedBatch(batch, manifest));
    const examples = checked.reduce((sum, batch) => sum + examplesIn(batch, manifest), 0);
    await this.pick(batches);
    const step = await this.engine.train(this.run.state, checked, lr, this.run.step + 1, between);
    return { run: afterStep(this.run, step, examples), step, examples };
  }

  /** Whether the elements that train are still to be picked, by the gradient on the first batches. */
  get mustPick(): boolean {
    return toPick(this.bundle.manifest, this.run.state).length > 0;
  }

  /** Picks the elements that train, unless they are picked already. */
  async pick(batches: readonly Batch[]): Promise<void> {
    if (!this.mustPick) return;
    const { manifest } = this.bundle;
    const { state } = this.run;
    const checked = batches.map((batch) => checkedBatch(batch, manifest));
    const picked = await pick(this.engine, manifest, state, checked);
    this.run = { ...this.run, state: { ...state, parameters: { ...state.parameters, ...picked } } };
  }

  /** Evaluates the current parameters. */
  evaluate(source: Source, between?: BetweenCalls): Promise<Evaluation> {
    return evaluate(this.engine, this.bundle.manifest, this.run.state, source, between);
  }

  /**
   * Makes a call of `fit` the current one: a saved call to resume or to extend, or a new one.
   *
   * @returns the report, if an earlier process finished this call.
   * @throws StateError the state contains a run with other settings.
   */
  startFit(settings: Settings): FitReport | null {
    let { fits } = this.run;
    const saved = this.finishedFits < this.resumedFits ? fits[this.finishedFits] : undefined;
    if (saved !== undefined) {
      if (saved === fits.at(-1) && addsEpochs(saved.settings, settings)) {
        this.run = withMoreEpochs(this.run, settings);
        return null;
      }
      checkSame(saved.settings, settings);
      return saved.stopped === null ? null : this.endFit(saved);
    }
    const last = fits.at(-1);
    if (last !== undefined && last.stopped === null) {
      if (differing(last.settings, settings).length === 0) return null;
      // Within one process, new settings after an interrupt are intended: the interrupted call ends here.
      fits = [...fits.slice(0, -1), { ...last, stopped: "interrupted" }];
    }
    this.run = { ...this.run, fits: [...fits, newFit(settings)], best: null };
    return null;
  }

  /** Counts a call of `fit` as finished and returns its report. */
  endFit(fit: FitState): FitReport {
    this.finishedFits += 1;
    return reportOf(fit);
  }

  /** Returns the state. @throws TrainingError a value is not finite: it must not replace a good file. */
  finiteState(): TrainState {
    const { state } = this.run;
    for (const [name, tensor] of [...Object.entries(state.parameters), ...Object.entries(state.optimizer)]) {
      const where = notFinite(tensor);
      if (where === null) continue;
      const message = "The run contains a value that is not finite; nothing was written.";
      const hint = "go back to the last checkpoint with a smaller learning rate.";
      throw new TrainingError("diverged", message, `tensor ${name} ${where}`, hint);
    }
    return state;
  }

  /** Writes a checkpoint to the store; returns whether there is a store. */
  async save(): Promise<boolean> {
    if (this.checkpoints === null) return false;
    const { parameters, optimizer } = this.finiteState();
    const best = this.run.best?.parameters ?? null;
    await this.checkpoints.save({ parameters, optimizer, best, run: runJson(this.run) });
    return true;
  }

  /** Goes back to the last checkpoint, and to the start of the calls of `fit`; returns whether there is one. */
  async resume(): Promise<boolean> {
    const saved = (await this.checkpoints?.load()) ?? null;
    if (saved === null) return false;
    const name = this.checkpoints!.name;
    const best = saved.best === null ? null : this.engine.load(saved.best, {});
    const run = readRun(name, saved.run, this.engine.load(saved.parameters, saved.optimizer), best);
    if (run.seed !== this.run.seed) {
      const context = `seed: this run ${this.run.seed}, the state ${run.seed}`;
      const hint = `pass seed: ${run.seed}, or use another state.`;
      throw new StateError("other-settings", `The run in ${name} has another seed.`, context, hint);
    }
    this.run = run;
    this.resumedFits = run.fits.length;
    this.finishedFits = this.replays ? 0 : run.fits.length;
    return true;
  }
}

function readRun(name: string, json: string, state: TrainState, best: TrainState | null): Run {
  try {
    return runOf(json, state, best);
  } catch (failure) {
    if (!(failure instanceof Wrong)) throw failure;
    const hint = "resume it with the runtime that wrote it, or use another state.";
    const message = `The state in ${name} is not one that this runtime can read.`;
    throw new StateError("unknown-checkpoint", message, failure.message, hint);
  }
}

function differing(saved: Settings, settings: Settings): string[] {
  return Object.keys({ ...settings, ...saved }).filter((name) => saved[name] !== settings[name]);
}

/** Returns whether the settings are the saved ones but for more epochs, and what follows from their number. */
function addsEpochs(saved: Settings, settings: Settings): boolean {
  const before = saved["epochs"];
  const after = settings["epochs"];
  const more = typeof before === "number" && typeof after === "number" && after > before;
  return more && differing(saved, settings).every((name) => ["epochs", "totalSteps", "warmup"].includes(name));
}

function checkSame(saved: Settings, settings: Settings): void {
  const names = differing(saved, settings);
  if (names.length === 0) return;
  const context = names.map((name) => `${name}: this run ${settings[name]}, the state ${saved[name]}`).join("\n");
  const hint = "use the settings and data that the run was started with, or restart it in another state.";
  throw new StateError("other-settings", "The state contains a run with other settings or other data.", context, hint);
}
