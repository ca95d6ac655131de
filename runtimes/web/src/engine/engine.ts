/**
 * The engine: the bundle's graphs in ONNX Runtime sessions, behind the few verbs a trainer needs.
 *
 * It keeps no parameters of its own. What trains lives in {@link Values}, which are never changed: a step takes values and
 * gives new ones, so a step that fails leaves nothing half done.
 */

import type { InferenceSession } from "onnxruntime-common";
import { type Bundle, WEIGHTS } from "../bundle/bundle.js";
import { BatchError, BundleError, TrainingError } from "../errors.js";
import { type SparseSpec, trained } from "../bundle/manifest.js";
import type { Ort, Session } from "./ort.js";
import { Tensor, type Tensors, copyOf, numbersOf, tensorOf } from "../files/tensors.js";

/** Parameters and optimizer state by name. */
export interface Values {
  readonly parameters: Tensors;
  readonly state: Tensors;
}

/** What one optimizer step gave; the mean loss is `lossSum / lossWeight`. */
export interface Step {
  readonly values: Values;
  readonly lossSum: number;
  readonly lossWeight: number;
  readonly gradNorm: number;
}

/** What one evaluation gave. */
export interface Forward {
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

  /** Values of tensors, copied; without `state` the optimizer starts anew. */
  load(parameters: Tensors, state?: Tensors): Values {
    const zeros = this.bundle.manifest.optimizer.state.map((spec) => [
      spec.name,
      tensorOf(spec.dtype, spec.shape as number[]),
    ]);
    const copied = Object.entries(parameters).map(([name, tensor]) => [name, copyOf(tensor)]);
    return {
      parameters: Object.fromEntries(copied) as Tensors,
      state: state ?? (Object.fromEntries(zeros) as Tensors),
    };
  }

  /**
   * One optimizer step over all batches: section 3 of the SPEC.
   *
   * @param step 1 for the first.
   * @throws BatchError no label of any batch counts.
   * @throws TrainingError a loss or the gradient is not finite, or ONNX Runtime failed.
   */
  async train(values: Values, batches: readonly Tensors[], lr: number, step: number): Promise<Step> {
    const { buckets } = this.bundle.manifest;
    let [lossSum, lossWeight] = [0, 0];
    let gradients = Object.fromEntries(buckets.map(({ name, size }) => [name, tensorOf("float32", [size])]));
    for (const batch of batches) {
      const wanted = ["loss_sum", "loss_weight", ...buckets.map(({ name }) => `${name}.next`)];
      const given = await this.run("train.onnx", wanted, { ...batch, ...values.parameters, ...gradients });
      [lossSum, lossWeight] = [lossSum + scalar(given, "loss_sum"), lossWeight + scalar(given, "loss_weight")];
      checkFinite("loss", lossSum, step, lr);
      gradients = Object.fromEntries(buckets.map(({ name }) => [name, given[`${name}.next`]!]));
    }
    if (lossWeight === 0) throw noLabelCounts();
    const [next, gradNorm] = await this.update(values, gradients, lr, step, 1 / lossWeight);
    checkFinite("gradient", gradNorm, step, lr);
    return { values: next, lossSum, lossWeight, gradNorm };
  }

  private async update(
    values: Values,
    gradients: Tensors,
    lr: number,
    step: number,
    scale: number,
  ): Promise<[Values, number]> {
    const names = trained(this.bundle.manifest).map((spec) => spec.name);
    const states = Object.keys(values.state);
    const given = await this.run(
      "optimizer.onnx",
      ["grad_norm", ...[...names, ...states].map((name) => `${name}.next`)],
      {
        ...Object.fromEntries(names.map((name) => [name, values.parameters[name]!])),
        ...gradients,
        ...values.state,
        lr: new Tensor("float32", Float32Array.of(lr), []),
        step: new Tensor("int64", BigInt64Array.of(BigInt(step)), []),
        grad_scale: new Tensor("float32", Float32Array.of(scale), []),
      },
    );
    const next = (of: readonly string[]): Tensors =>
      Object.fromEntries(of.map((name) => [name, given[`${name}.next`]!]));
    return [{ parameters: { ...values.parameters, ...next(names) }, state: next(states) }, scalar(given, "grad_norm")];
  }

  /** The dense gradients of the summed loss of one batch, by which the elements that train are picked. */
  async gradients(values: Values, batch: Tensors, specs: readonly SparseSpec[]): Promise<Tensor[]> {
    const names = specs.map((spec) => spec.gradient!);
    const given = await this.run("select.onnx", names, { ...batch, ...values.parameters });
    return names.map((name) => given[name]!);
  }

  /** Loss and outputs of one batch. */
  async evaluate(values: Values, batch: Tensors): Promise<Forward> {
    const names = this.bundle.manifest.outputs.map((spec) => spec.name);
    const given = await this.run("eval.onnx", ["loss_sum", "loss_weight", ...names], {
      ...batch,
      ...values.parameters,
    });
    const outputs = Object.fromEntries(names.map((name) => [name, given[name]!]));
    return { lossSum: scalar(given, "loss_sum"), lossWeight: scalar(given, "loss_weight"), outputs };
  }

  /** Outputs of one batch without labels. */
  async infer(values: Values, inputs: Tensors): Promise<Tensors> {
    const names = this.bundle.manifest.outputs.map((spec) => spec.name);
    return this.run("infer.onnx", names, { ...inputs, ...values.parameters });
  }

  /** Lets go of the sessions. */
  async close(): Promise<void> {
    await this.last;
    for (const session of await Promise.allSettled(this.sessions.values())) {
      if (session.status === "fulfilled") await session.value.release();
    }
    this.sessions.clear();
  }

  /** Runs a graph, one after another: a WebAssembly module does one thing at a time. */
  private run(graph: string, outputs: readonly string[], feeds: Tensors): Promise<Tensors> {
    const turn = this.last.then(async () => {
      const session = await this.session(graph);
      try {
        return (await session.run(feeds, outputs)) as Tensors;
      } catch (failure) {
        const hint = "the node's name in the message leads to the layer; less memory is used with smaller batches.";
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
    // Shapes change from batch to batch, and a plan of the memory for each takes memory.
    const options = { logSeverityLevel: 3 as const, enableMemPattern: false, ...external, ...this.options };
    try {
      const { InferenceSession: sessions } = this.ort;
      return await (typeof model === "string" ? sessions.create(model, options) : sessions.create(model, options));
    } catch (failure) {
      this.sessions.delete(graph);
      const hint = "prepare the bundle again with this version of ONNX Runtime as its minimum.";
      throw new BundleError("graph-not-loaded", `ONNX Runtime cannot open ${graph}.`, String(failure), hint);
    }
  }
}

function scalar(given: Tensors, name: string): number {
  return Number(numbersOf(given[name]!)[0]);
}

function checkFinite(what: string, found: number, step: number, lr: number): void {
  if (Number.isFinite(found)) return;
  const message = `The ${what} of step ${step} is not finite; the parameters are those of the step before.`;
  const hint = "use a smaller learning rate or a warm-up, and look for extreme values in the data.";
  throw new TrainingError("not-finite", message, `found ${found}; learning rate ${lr}`, hint);
}

function noLabelCounts(): BatchError {
  const hint = "leave such batches out, or check how the labels were made.";
  const message = "No label of this step counts: there is nothing to learn from.";
  return new BatchError("no-label-counts", message, "every label is the ignored one", hint);
}
