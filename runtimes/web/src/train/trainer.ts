/** The trainer: everything that a device does with a model. */

import { type AdapterSource, loadAdapter } from "../bundle/adapter_source.js";
import { Bundle } from "../bundle/bundle.js";
import { type BundleFiles, urlFiles } from "../bundle/files.js";
import { positive, require } from "../checks.js";
import type { Batch } from "../data/batch.js";
import { type Data, sourceOf } from "../data/datasets.js";
import type { Accelerator, Verdict } from "../engine/accelerator.js";
import { Engine, type SessionOptions, type TrainState } from "../engine/engine.js";
import type { Evaluation } from "../engine/evaluate.js";
import { type Sampling, generate } from "../engine/generate.js";
import { type Ort, versionOf } from "../ort.js";
import { predict } from "../engine/predict.js";
import { StateError, TrainingError } from "../errors.js";
import { type Tensors, copies } from "../files/tensors.js";
import { Checkpoints } from "./checkpoint.js";
import { fit } from "./fit.js";
import type { FitOptions } from "./options.js";
import type { EpochRecord, FitReport } from "./records.js";
import { Session } from "./session.js";
import type { StateStore } from "./store.js";
import { updateBytes } from "./update.js";

export interface OpenOptions {
  /** The package of ONNX Runtime: `onnxruntime-web`, `onnxruntime-node` or `onnxruntime-react-native`. */
  readonly ort: Ort;
  /** Storage of the run. If it contains a run, that run is resumed. */
  readonly state?: StateStore;
  /**
   * Whether the calls of `fit` repeat those of the saved run, as a program does that is started again: true. An app whose calls
   * follow its user passes false. Then a call with other settings or data begins where the saved run ended, and only an interrupted
   * call with equal settings is resumed.
   */
  readonly replays?: boolean;
  /** Adapter to start from instead of the bundle's own. */
  readonly adapter?: AdapterSource;
  /** Seed of the shuffling: 0. Equal seeds and data give equal orders in every runtime. */
  readonly seed?: number;
  /** Options of all sessions, such as `intraOpNumThreads`. */
  readonly session?: SessionOptions;
  /** Another execution provider, such as WebGPU. It runs the programs in which it agrees with the CPU: see `verdicts`. */
  readonly accelerator?: Accelerator;
  /** Called while the bundle is read, with the bytes read so far and the bytes in all. */
  readonly progress?: (read: number, all: number) => void;
}

/** Trains the adapter of one bundle; create one with {@link Trainer.open}. */
export class Trainer {
  private training = false;

  private constructor(
    readonly session: Session,
    private readonly ortVersion: string,
    private readonly own: Bundle | null,
  ) {}

  /**
   * Opens a bundle for training, evaluation or prediction.
   *
   * @param source a URL, or what `handleFiles`, `heldFiles` or `folder` of `edgepeft-runtime/node` return.
   * @throws BundleError the bundle or the adapter is damaged, or they do not fit together.
   * @throws StateError the state is damaged, in use, or belongs to another bundle or adapter.
   */
  static async open(source: BundleFiles | Bundle | string | URL, options: OpenOptions): Promise<Trainer> {
    const { ort, state, adapter, seed = 0, session: sessionOptions = {}, accelerator, progress } = options;
    const { replays = true } = options;
    checkProviders(sessionOptions, accelerator);
    require("seed", seed, Number.isSafeInteger(seed) && seed >= 0, "a whole number of at least 0");
    const files = typeof source === "string" || source instanceof URL ? urlFiles(source) : source;
    const bundle = files instanceof Bundle ? files : await Bundle.open(files, ort, progress);
    const own = bundle === files ? null : bundle;
    try {
      const start = await loadAdapter(bundle, adapter);
      const checkpoints = state === undefined ? null : await Checkpoints.open(state, bundle, start.sha256);
      const engine = new Engine(bundle, ort, sessionOptions, accelerator);
      const session = new Session(bundle, engine, start, seed, checkpoints, replays);
      await session.resume().catch(async (failure: unknown) => {
        await session.close();
        throw failure;
      });
      return new Trainer(session, versionOf(ort) ?? "of unknown version", own);
    } catch (failure) {
      await own?.close();
      throw failure;
    }
  }

  /** Releases the graphs, the state and, unless it was passed in, the bundle, without saving. */
  async close(): Promise<void> {
    await this.session.close();
    await this.own?.close();
  }

  get bundle(): Bundle {
    return this.session.bundle;
  }

  /** Optimizer steps taken in this run, also before it was resumed. */
  get steps(): number {
    return this.session.run.step;
  }

  /** Examples trained on in this run, repeats counted. */
  get examples(): number {
    return this.session.run.examples;
  }

  /** The seed of the shuffling. */
  get seed(): number {
    return this.session.run.seed;
  }

  /** One record per epoch of `fit`, and one before training where there was held-out data. */
  get history(): readonly EpochRecord[] {
    return this.session.run.fits.flatMap((fit) => fit.history);
  }

  /** For each program that has run with an accelerator: whether it agreed with the CPU, and the figures. */
  get verdicts(): readonly Verdict[] {
    return this.session.engine.verdicts;
  }

  /** Returns copies of the current parameters by name. */
  parameters(): Tensors {
    return copies(this.session.run.state.parameters);
  }

  /**
   * Takes one optimizer step over a batch, or over several as if they were one.
   *
   * @returns the mean loss before the update, over all labels that are not ignored.
   * @throws BatchError a batch does not fit, or every label is ignored.
   * @throws TrainingError the loss or the gradient is not finite. In both cases the parameters stay as they were.
   */
  step(batch: Batch | readonly Batch[], lr = this.bundle.manifest.optimizer.lr): Promise<number> {
    return this.alone(async () => {
      const { run, step } = await this.session.nextRun(Array.isArray(batch) ? batch : [batch], lr);
      this.session.run = run;
      return step.lossSum / step.lossWeight;
    });
  }

  /** Whether the elements that train are still to be picked, by the gradient on the first batches. */
  get mustPick(): boolean {
    return this.session.mustPick;
  }

  /** Picks which elements of sparse tensors train, once; `step` and `fit` do it themselves. */
  pick(batches: readonly Batch[]): Promise<void> {
    return this.session.pick(batches);
  }

  /**
   * Trains for some epochs, or resumes where an earlier process with the same settings stopped. With more `epochs`
   * than before and all else equal, a saved run continues with its optimizer state.
   *
   * @returns the report; that of the earlier process, if it finished this call.
   * @throws StateError the state contains a run with other settings.
   * @throws BatchError, DataError, TrainingError as in `step`; the run stays where it was.
   */
  fit(data: Data, options: FitOptions = {}): Promise<FitReport> {
    return this.alone(() => fit(this.session, data, options));
  }

  /** Returns the loss and, for class labels, the accuracy over all of `data`. */
  async evaluate(data: Data, batchSize = 8): Promise<Evaluation> {
    return this.session.evaluate(sourceOf(data, positive("batchSize", batchSize)));
  }

  /**
   * Returns the model's outputs by name. Labels among the inputs are left out.
   *
   * @param options `adapter`: another adapter for this call alone; `batchSize`: cuts the first axis into batches.
   */
  async predict(
    inputs: Batch,
    options: { readonly adapter?: AdapterSource; readonly batchSize?: number } = {},
  ): Promise<Tensors> {
    const { adapter, batchSize } = options;
    return predict(this.session.engine, this.bundle.manifest, await this.stateOf(adapter), inputs, batchSize);
  }

  /**
   * Generates a continuation of a prompt, greedily or by sampling (section 7 of the SPEC).
   *
   * @param prompt token ids, which a `Prompter` makes of a text.
   * @returns the new token ids; the last one may end the text.
   * @throws BatchError the prompt does not fit the model, or the bundle is not of a language model that generates.
   */
  async generate(prompt: readonly number[], sampling: Sampling = {}): Promise<number[]> {
    return generate(this.session.engine, this.bundle.manifest, await this.stateOf(sampling.adapter), prompt, sampling);
  }

  /** Returns the current state, or that of another adapter. */
  private async stateOf(adapter?: AdapterSource): Promise<TrainState> {
    const { bundle, engine, run } = this.session;
    return adapter === undefined ? run.state : engine.load((await loadAdapter(bundle, adapter)).parameters, {});
  }

  /** Writes a checkpoint to the state. */
  async save(): Promise<void> {
    if (await this.session.save()) return;
    throw noState("This run has no state to save to.", "open the trainer with a state.");
  }

  /** Goes back to the last checkpoint. Steps since then are lost. */
  resume(): Promise<void> {
    return this.alone(async () => {
      if (await this.session.resume()) return;
      throw noState("There is no checkpoint to resume from.", "open the trainer with a state, and save first.");
    });
  }

  /** Returns the update that the host merges (section 5 of the SPEC). */
  async saveUpdate(): Promise<Uint8Array<ArrayBuffer>> {
    const { bundle, run, adapterSha256 } = this.session;
    return updateBytes(bundle, run, this.session.finiteState().parameters, adapterSha256, this.ortVersion);
  }

  /** Refuses a second call that trains at the same time: each would overwrite the other's result. */
  private async alone<T>(work: () => Promise<T>): Promise<T> {
    if (this.training) {
      throw new TrainingError("busy", "Another call is training already.", null, "wait for it with await.");
    }
    this.training = true;
    try {
      return await work();
    } finally {
      this.training = false;
    }
  }
}

/** Refuses providers that nothing would compare with the CPU. */
function checkProviders(options: object, accelerator: Accelerator | undefined): void {
  require("session", options, !(
    "executionProviders" in options
  ), "no providers: pass accelerator: { executionProviders }");
  if (accelerator === undefined) return;
  const { executionProviders } = accelerator;
  require("accelerator.executionProviders", executionProviders, executionProviders.length > 0, "at least one name");
}

function noState(message: string, hint: string): StateError {
  return new StateError("no-state", message, null, hint);
}
