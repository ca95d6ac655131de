/**
 * Runs a bundle's graphs in ONNX Runtime sessions.
 *
 * An engine keeps no parameters of its own. They live in a {@link TrainState}, which is never changed: a step takes a
 * state and returns a new one. A step that fails leaves nothing half done, and keeping the best state costs no copy.
 */

import type { InferenceSession } from "onnxruntime-common";
import { type Bundle, WEIGHTS } from "../bundle/bundle.js";
import { BatchError, BundleError, TrainingError } from "../errors.js";
import { type SparseSpec, trained } from "../bundle/manifest.js";
import type { Ort, Session } from "../ort.js";
import { Tensor, type Tensors, copies, numbersOf, tensorOf } from "../files/tensors.js";

/** The values that a step changes. */
export interface TrainState {
  /** Trainable and non-trainable parameters by name. */
  readonly parameters: Tensors;
  /** State of the optimizer by name, such as the moments of AdamW. */
  readonly optimizer: Tensors;
}

/** The result of one optimizer step. */
export interface Step {
  /** The state after the step. */
  readonly state: TrainState;
  /** Weighted sum of the losses, before the step. The mean loss is `lossSum / lossWeight`. */
  readonly lossSum: number;
  /** Sum of the weights: the number of labels that are not ignored, or their class weights. */
  readonly lossWeight: number;
  /** L2 norm of the gradient of the mean loss, before clipping. */
  readonly gradNorm: number;
}

/** Loss of one batch, as in {@link Step}, and the model's outputs by name. */
export interface EvalResult {
  readonly lossSum: number;
  readonly lossWeight: number;
  readonly outputs: Tensors;
}

export class Engine {
  private readonly sessions = new Map<string, Promise<Session>>();
  private last: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly bundle: Bundle,
    private readonly ort: Ort,
    private readonly options: InferenceSession.SessionOptions,
  ) {}

  /** Copies tensors into a state; without `optimizer`, the optimizer starts from zeros. */
  load(parameters: Tensors, optimizer?: Tensors): TrainState {
    const zeros = (): Tensors =>
      Object.fromEntries(
        this.bundle.manifest.optimizer.state.map(({ name, dtype, shape }) => [
          name,
          tensorOf(dtype, shape as number[]),
        ]),
      );
    return { parameters: copies(parameters), optimizer: optimizer ?? zeros() };
  }

  /**
   * Takes one optimizer step over all batches: section 3 of the SPEC.
   *
   * @param step 1 for the first.
   * @throws BatchError every label of every batch is ignored.
   * @throws TrainingError a loss or the gradient is not finite, or ONNX Runtime failed. `state` stays as it was.
   */
  async train(state: TrainState, batches: readonly Tensors[], lr: number, step: number): Promise<Step> {
    const { buckets } = this.bundle.manifest;
    let [lossSum, lossWeight] = [0, 0];
    let gradients = Object.fromEntries(buckets.map(({ name, size }) => [name, tensorOf("float32", [size])]));
    for (const batch of batches) {
      const names = ["loss_sum", "loss_weight", ...buckets.map(({ name }) => `${name}.next`)];
      const results = await this.run("train.onnx", names, { ...batch, ...state.parameters, ...gradients });
      [lossSum, lossWeight] = [lossSum + scalar(results, "loss_sum"), lossWeight + scalar(results, "loss_weight")];
      checkFinite("loss", lossSum, step, lr);
      gradients = Object.fromEntries(buckets.map(({ name }) => [name, results[`${name}.next`]!]));
    }
    if (lossWeight === 0) throw noLabelCounts();
    const [after, gradNorm] = await this.update(state, gradients, lr, step, 1 / lossWeight);
    checkFinite("gradient", gradNorm, step, lr);
    return { state: after, lossSum, lossWeight, gradNorm };
  }

  private async update(
    state: TrainState,
    gradients: Tensors,
    lr: number,
    step: number,
    scale: number,
  ): Promise<[TrainState, number]> {
    const names = trained(this.bundle.manifest).map((spec) => spec.name);
    const moments = Object.keys(state.optimizer);
    const results = await this.run(
      "optimizer.onnx",
      ["grad_norm", ...[...names, ...moments].map((name) => `${name}.next`)],
      {
        ...Object.fromEntries(names.map((name) => [name, state.parameters[name]!])),
        ...gradients,
        ...state.optimizer,
        lr: new Tensor("float32", Float32Array.of(lr), []),
        step: new Tensor("int64", BigInt64Array.of(BigInt(step)), []),
        grad_scale: new Tensor("float32", Float32Array.of(scale), []),
      },
    );
    const next = (of: readonly string[]): Tensors =>
      Object.fromEntries(of.map((name) => [name, results[`${name}.next`]!]));
    const parameters = { ...state.parameters, ...next(names) };
    return [{ parameters, optimizer: next(moments) }, scalar(results, "grad_norm")];
  }

  /** Returns the dense gradients of `lossSum`, by which the elements that train are picked. */
  async gradients(state: TrainState, batch: Tensors, specs: readonly SparseSpec[]): Promise<Tensor[]> {
    const names = specs.map((spec) => spec.gradient!);
    const results = await this.run("select.onnx", names, { ...batch, ...state.parameters });
    return names.map((name) => results[name]!);
  }

  /** Returns loss and outputs of one batch. */
  async evaluate(state: TrainState, batch: Tensors): Promise<EvalResult> {
    const names = this.bundle.manifest.outputs.map((spec) => spec.name);
    const wanted = ["loss_sum", "loss_weight", ...names];
    const results = await this.run("eval.onnx", wanted, { ...batch, ...state.parameters });
    const outputs = Object.fromEntries(names.map((name) => [name, results[name]!]));
    return { lossSum: scalar(results, "loss_sum"), lossWeight: scalar(results, "loss_weight"), outputs };
  }

  /** Returns the outputs of one batch without labels. */
  async infer(state: TrainState, inputs: Tensors): Promise<Tensors> {
    const names = this.bundle.manifest.outputs.map((spec) => spec.name);
    return this.run("infer.onnx", names, { ...inputs, ...state.parameters });
  }

  /** Releases the sessions. */
  async close(): Promise<void> {
    await this.last;
    for (const session of await Promise.allSettled(this.sessions.values())) {
      if (session.status === "fulfilled") await session.value.release();
    }
    this.sessions.clear();
  }

  /** Runs graphs one after another: a WebAssembly module does one thing at a time. */
  private run(graph: string, outputs: readonly string[], feeds: Tensors): Promise<Tensors> {
    const turn = this.last.then(async () => {
      const session = await this.session(graph);
      try {
        return (await session.run(feeds, outputs)) as Tensors;
      } catch (failure) {
        const hint = "the node's name in the message leads to the layer; smaller batches use less memory.";
        throw new TrainingError("onnxruntime-failed", `ONNX Runtime failed in ${graph}.`, String(failure), hint);
      }
    });
    this.last = turn.catch(() => undefined);
    return turn;
  }

  private session(graph: string): Promise<Session> {
    const open = this.sessions.get(graph) ?? this.open(graph);
    this.sessions.set(graph, open);
    return open;
  }

  private async open(graph: string): Promise<Session> {
    const { model, weights } = this.bundle.graph(graph);
    const external = weights === null ? {} : { externalData: [{ path: WEIGHTS, data: weights }] };
    // Shapes change from batch to batch, and a memory plan for each takes memory.
    const options = { logSeverityLevel: 3 as const, enableMemPattern: false, ...external, ...this.options };
    try {
      const { InferenceSession: sessions } = this.ort;
      return await (typeof model === "string" ? sessions.create(model, options) : sessions.create(model, options));
    } catch (failure) {
      this.sessions.delete(graph);
      const hint = "prepare the bundle again with this version of ONNX Runtime as its minimum.";
      throw new BundleError("graph-not-loaded", `ONNX Runtime cannot load ${graph}.`, String(failure), hint);
    }
  }
}

function scalar(results: Tensors, name: string): number {
  return Number(numbersOf(results[name]!)[0]);
}

function checkFinite(what: string, value: number, step: number, lr: number): void {
  if (Number.isFinite(value)) return;
  const message = `The ${what} of step ${step} is not finite; the parameters are those of the step before.`;
  const hint = "use a smaller learning rate or a warm-up, and look for extreme values in the data.";
  throw new TrainingError("diverged", message, `${what}: ${value}; learning rate ${lr}`, hint);
}

function noLabelCounts(): BatchError {
  const hint = "leave such batches out, or check how the labels were made.";
  const message = "Every label in this step is ignored, so there is no loss to minimize.";
  return new BatchError("no-label-counts", message, "every label equals the ignore index", hint);
}
