/** The trainer: open a bundle, step, evaluate, predict, save; everything a device does with a model. */

import type { InferenceSession } from "onnxruntime-common";
import { countRight } from "./accuracy.js";
import { type Batch, checkedBatch, examplesIn } from "../data/batch.js";
import { Bundle, checkedParameters } from "../bundle/bundle.js";
import { type Checkpoint, Checkpoints } from "./checkpoint.js";
import { type Data, type Source, sourceOf } from "../data/datasets.js";
import { Engine, type Step } from "../engine/engine.js";
import { BundleError, DataError, StateError, TrainingError } from "../errors.js";
import { Wrong } from "../files/fields.js";
import { type BundleFiles, urlFiles } from "../bundle/files.js";
import { type FitOptions, type Report, fit, positive } from "./fit.js";
import { deltaCoded } from "../files/index_coding.js";
import { type Ort, versionOf } from "../engine/ort.js";
import { type Evaluation, type Line, type Run, afterStep, newRun, runJson, runOf } from "./run.js";
import { pick, toPick } from "./selection.js";
import { sha256 } from "../files/sha256.js";
import type { StateStore } from "./store.js";
import { readTensors, tensorBytes } from "../files/tensorfile.js";
import { type Tensors, concatenated, copyOf, notFinite } from "../files/tensors.js";
import { VERSION } from "../version.js";

/** The bytes of an adapter or an update, or its tensors by name. */
export type Adapter = Uint8Array | Tensors;

export interface OpenOptions {
  /** The package of ONNX Runtime: `onnxruntime-web`, `onnxruntime-node` or `onnxruntime-react-native`. */
  readonly ort: Ort;
  /** Where to keep the run. If it holds one, that goes on. */
  readonly state?: StateStore;
  /** What to start from instead of the bundle's own adapter. */
  readonly adapter?: Adapter;
  /** Of the shuffling; equal seeds and data give equal orders in every runtime. 0 by default. */
  readonly seed?: number;
  /** Options of all sessions: execution providers, threads. */
  readonly session?: InferenceSession.SessionOptions;
  /** Called while the bundle is read, with the bytes so far and all bytes. */
  readonly progress?: (read: number, all: number) => void;
}

/** Trains the adapter of one bundle; make one with {@link Trainer.open}. */
export class Trainer {
  /** How many calls of `fit` the state held when it was opened: these are gone through again, not repeated. */
  resumedFits: number;
  /** How many calls of `fit` have returned since. */
  finishedFits = 0;
  private training = false;

  private constructor(
    readonly bundle: Bundle,
    private readonly engine: Engine,
    /** The run so far; replaced as a whole after each step. */
    public run: Run,
    private readonly adapterSha256: string,
    private readonly runtime: string,
    private readonly checkpoints: Checkpoints | null,
  ) {
    this.resumedFits = run.fits.length;
  }

  /**
   * Opens a bundle for training, evaluation or prediction.
   *
   * @param source where its files are: a URL, or what `handleFiles`, `heldFiles` or `folder` of `edgepeft-runtime/node` give.
   * @throws BundleError the bundle or the adapter is damaged or does not fit.
   * @throws StateError the state is damaged, in use, or belongs to another bundle or adapter.
   */
  static async open(source: BundleFiles | Bundle | string | URL, options: OpenOptions): Promise<Trainer> {
    const { ort, state, adapter, seed = 0, session = {}, progress } = options;
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw new TrainingError("bad-setting", "seed must be a whole number of at least 0.", `found ${seed}`, null);
    }
    const files = typeof source === "string" || source instanceof URL ? urlFiles(source) : source;
    const bundle = files instanceof Bundle ? files : await Bundle.open(files, ort, progress);
    const first = await adapterValues(bundle, adapter);
    const engine = new Engine(bundle, ort, session);
    const checkpoints = state === undefined ? null : await Checkpoints.open(state, bundle, first.digest);
    try {
      const kept = (await checkpoints?.load()) ?? null;
      const run =
        kept === null ? newRun(engine.load(first.tensors), seed) : resumed(kept, engine, seed, checkpoints!.name);
      const runtime = `edgepeft-runtime ${VERSION}, onnxruntime ${versionOf(ort) ?? "of unknown version"}`;
      return new Trainer(bundle, engine, run, first.digest, runtime, checkpoints);
    } catch (failure) {
      await checkpoints?.close();
      throw failure;
    }
  }

  /** Lets go of the graphs and of the state. Does not save. */
  async close(): Promise<void> {
    await this.engine.close();
    await this.checkpoints?.close();
  }

  /** Optimizer steps taken in this run, before and after a resume. */
  get steps(): number {
    return this.run.step;
  }

  /** Examples trained on in this run, repeats counted. */
  get examples(): number {
    return this.run.examples;
  }

  get seed(): number {
    return this.run.seed;
  }

  /** One line per epoch of `fit`, and one before training where there was held-out data. */
  get history(): readonly Line[] {
    return this.run.fits.flatMap((fit) => fit.history);
  }

  get keepsState(): boolean {
    return this.checkpoints !== null;
  }

  /** The parameters as they stand, as tensors of their own. */
  parameters(): Tensors {
    return Object.fromEntries(
      Object.entries(this.run.values.parameters).map(([name, tensor]) => [name, copyOf(tensor)]),
    );
  }

  /**
   * One optimizer step over a batch, or over several as if they were one.
   *
   * @returns the mean loss before the update, over all labels that count.
   * @throws BatchError a batch does not fit, or no label counts.
   * @throws TrainingError the loss or the gradient is not finite. In both cases the parameters are as before.
   */
  step(batch: Batch | readonly Batch[], lr = this.bundle.manifest.optimizer.lr): Promise<number> {
    return this.alone(async () => {
      const { run, step } = await this.nextRun(Array.isArray(batch) ? batch : [batch], lr);
      this.run = run;
      return step.lossSum / step.lossWeight;
    });
  }

  /** The run one optimizer step further (without taking it over), the step, and its number of examples. */
  async nextRun(batches: readonly Batch[], lr: number): Promise<{ run: Run; step: Step; examples: number }> {
    if (!(Number.isFinite(lr) && lr >= 0)) {
      throw new TrainingError(
        "bad-setting",
        "The learning rate is out of range.",
        `lr: ${lr}`,
        "give a finite number, 0 or more.",
      );
    }
    const { manifest } = this.bundle;
    const checked = batches.map((batch) => checkedBatch(batch, manifest));
    const examples = checked.reduce((sum, batch) => sum + examplesIn(batch, manifest), 0);
    await this.pick(batches);
    const step = await this.engine.train(this.run.values, checked, lr, this.run.step + 1);
    return { run: afterStep(this.run, step, examples), step, examples };
  }

  /** Whether elements that train are still to be picked, by the gradient on the first batches. */
  get mustPick(): boolean {
    return toPick(this.bundle.manifest, this.run.values).length > 0;
  }

  /** Picks which elements of sparse tensors train; `step` and `fit` do it themselves. Once picked, they stay. */
  async pick(batches: readonly Batch[]): Promise<void> {
    if (!this.mustPick) return;
    const { manifest } = this.bundle;
    const { values } = this.run;
    const indices = await pick(
      this.engine,
      manifest,
      values,
      batches.map((batch) => checkedBatch(batch, manifest)),
    );
    this.run = { ...this.run, values: { ...values, parameters: { ...values.parameters, ...indices } } };
  }

  /**
   * Trains for some epochs, and goes on where an earlier process with the same settings stopped.
   *
   * @returns the report; that of the earlier process if it had finished.
   * @throws StateError the state holds a run with other settings.
   * @throws BatchError, DataError, TrainingError as `step` does; the run stays where it was.
   */
  fit(data: Data, options: FitOptions = {}): Promise<Report> {
    return this.alone(() => fit(this, data, options));
  }

  /** Loss and, for class labels, accuracy over all of `data`; changes nothing. */
  async evaluate(data: Data, batchSize = 8): Promise<Evaluation> {
    return this.evaluateSource(sourceOf(data, positive("batchSize", batchSize)));
  }

  /** `evaluate` over batches that are cut already. */
  async evaluateSource(source: Source): Promise<Evaluation> {
    const { manifest } = this.bundle;
    const sums = { loss: 0, weight: 0, examples: 0, right: 0, asked: 0 };
    for await (const batch of source.batches(0)) {
      const checked = checkedBatch(batch, manifest);
      const { lossSum, lossWeight, outputs } = await this.engine.evaluate(this.run.values, checked);
      const { right, asked } = countRight(outputs, checked, manifest);
      sums.loss += lossSum;
      sums.weight += lossWeight;
      sums.examples += examplesIn(checked, manifest);
      sums.right += right;
      sums.asked += asked;
    }
    if (sums.weight === 0) {
      const what = sums.examples > 0 ? "every label is the ignored one." : "the data gives no batch.";
      throw new DataError("no-data", "There is nothing to evaluate.", what, "pass labelled examples.");
    }
    const accuracy = sums.asked > 0 ? sums.right / sums.asked : null;
    return { loss: sums.loss / sums.weight, accuracy, examples: sums.examples };
  }

  /**
   * The model's outputs by name; changes nothing. Labels among the inputs are left out.
   *
   * @param options `adapter`: another one for this call alone; `batchSize`: cuts the first axis.
   */
  async predict(
    inputs: Batch,
    options: { readonly adapter?: Adapter; readonly batchSize?: number } = {},
  ): Promise<Tensors> {
    const { adapter, batchSize } = options;
    const other = adapter === undefined ? null : await adapterValues(this.bundle, adapter);
    const values = other === null ? this.run.values : this.engine.load(other.tensors, {});
    const parts: Tensors[] = [];
    const source = sourceOf(batchSize === undefined ? [inputs] : inputs, positive("batchSize", batchSize ?? 1));
    for await (const batch of source.batches(0)) {
      parts.push(await this.engine.infer(values, checkedBatch(batch, this.bundle.manifest, false)));
    }
    const names = this.bundle.manifest.outputs.map((spec) => spec.name);
    return Object.fromEntries(names.map((name) => [name, concatenated(parts.map((part) => part[name]!))]));
  }

  /** Writes a checkpoint to the state. */
  async save(): Promise<void> {
    const { parameters, state } = this.finiteValues();
    if (this.checkpoints === null) throw noState("This run has no state to save to.", "open the trainer with a state.");
    await this.checkpoints.save({ parameters, state, best: this.run.best?.parameters ?? null, run: runJson(this.run) });
  }

  /** Goes back to the last checkpoint, as `open` does; steps since then are lost. */
  resume(): Promise<void> {
    return this.alone(async () => {
      const kept = (await this.checkpoints?.load()) ?? null;
      if (kept === null)
        throw noState("There is no checkpoint to resume from.", "open the trainer with a state, and save first.");
      this.run = resumed(kept, this.engine, this.run.seed, this.checkpoints!.name);
      this.resumedFits = this.run.fits.length;
      this.finishedFits = 0;
    });
  }

  /** The file that the host merges: the parameters, and where they come from (section 5 of the SPEC). */
  async saveUpdate(): Promise<Uint8Array<ArrayBuffer>> {
    const { run } = this;
    const [before, after] =
      run.heldOutBefore === null ? [run.lossBefore, run.lossAfter] : [run.heldOutBefore, run.heldOutAfter];
    const loss = (value: number | null): string => (value === null || !Number.isFinite(value) ? "" : String(value));
    const metadata = {
      format: "edgepeft-update",
      version: "2",
      base_sha256: this.bundle.baseSha256,
      adapter_sha256: this.adapterSha256,
      provenance: JSON.stringify(this.bundle.manifest.provenance),
      num_examples: String(run.examples),
      steps: String(run.step),
      loss_before: loss(before),
      loss_after: loss(after),
      runtime: this.runtime,
    };
    return (await tensorBytes(...deltaCoded(this.finiteValues().parameters, metadata), true)).bytes;
  }

  /** Parameters and state; what has overflowed must not replace a good file. */
  private finiteValues(): Run["values"] {
    const { values } = this.run;
    for (const [name, tensor] of [...Object.entries(values.parameters), ...Object.entries(values.state)]) {
      const place = notFinite(tensor);
      if (place === null) continue;
      const message = "The run holds a value that is not finite; nothing was written.";
      throw new TrainingError(
        "not-finite",
        message,
        `tensor ${name} ${place}`,
        "go back to the last checkpoint with a smaller learning rate.",
      );
    }
    return values;
  }

  /** Two calls that train at once would each replace what the other did. */
  private async alone<T>(work: () => Promise<T>): Promise<T> {
    if (this.training) throw new TrainingError("busy", "Another call trains already.", null, "wait for it with await.");
    this.training = true;
    try {
      return await work();
    } finally {
      this.training = false;
    }
  }
}

/** The parameters of an adapter, checked, and the hash of its file. */
async function adapterValues(
  bundle: Bundle,
  adapter: Adapter | undefined,
): Promise<{ tensors: Tensors; digest: string }> {
  if (adapter === undefined) return { tensors: await bundle.adapter(), digest: bundle.adapterSha256 };
  const held = adapter instanceof Uint8Array;
  const tensors = held ? (await readTensors(adapter, "The adapter", BundleError)).tensors : adapter;
  const checked = checkedParameters(tensors, bundle.manifest, "The adapter", BundleError);
  return { tensors: checked, digest: held ? await sha256(adapter) : (await tensorBytes(checked)).digest };
}

function resumed(kept: Checkpoint, engine: Engine, seed: number, where: string): Run {
  let run: Run;
  try {
    const best = kept.best === null ? null : engine.load(kept.best, {});
    run = runOf(kept.run, engine.load(kept.parameters, kept.state), best);
  } catch (failure) {
    if (!(failure instanceof Wrong)) throw failure;
    const hint = "resume it with the runtime that wrote it, or use another state.";
    throw new StateError(
      "unknown-checkpoint",
      `The state in ${where} is not one that is known.`,
      failure.message,
      hint,
    );
  }
  if (run.seed === seed) return run;
  const context = `seed: this run ${seed}, the state ${run.seed}`;
  throw new StateError("other-settings", `The run in ${where} has another seed.`, context, `pass seed: ${run.seed}.`);
}

function noState(message: string, hint: string): StateError {
  return new StateError("no-state", message, null, hint);
}
