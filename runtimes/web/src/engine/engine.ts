/**
 * Runs a bundle's programs in ONNX Runtime sessions.
 *
 * An engine keeps no parameters of its own. They live in a {@link TrainState}, which is never changed: a step takes a
 * state and returns a new one. A step that fails leaves nothing half done, and keeping the best state costs no copy.
 */

import type { InferenceSession } from "onnxruntime-common";
import type { Bundle } from "../bundle/bundle.js";
import { OPTIMIZER } from "../bundle/declared.js";
import { type SparseSpec, trained } from "../bundle/manifest.js";
import { LOGITS, LOSS_SUM, LOSS_WEIGHT } from "../bundle/plan.js";
import { BatchError, TrainingError } from "../errors.js";
import { Tensor, type Tensors, copies, numbersOf, tensorOf } from "../files/tensors.js";
import type { Ort } from "../ort.js";
import { type Accelerator, ComparedPrograms, type Verdict } from "./accelerator.js";
import { Accumulators } from "./accumulators.js";
import { type BetweenCalls, ProgramRunner, type Programs } from "./program.js";
import { Sessions } from "./sessions.js";

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

/** Keys and values of the tokens read so far, by the names of the values that the program `generate` reads. */
export type Cache = Tensors;

/** Options of sessions. Execution providers other than the CPU come in by an {@link Accelerator}. */
export type SessionOptions = Omit<InferenceSession.SessionOptions, "executionProviders">;

export class Engine {
  private readonly sessions: Sessions;
  private readonly accelerated: Sessions | null = null;
  private readonly compared: ComparedPrograms | null = null;
  private readonly programs: Programs;

  constructor(
    private readonly bundle: Bundle,
    ort: Ort,
    options: SessionOptions,
    accelerator?: Accelerator,
  ) {
    this.sessions = new Sessions(bundle, ort, options);
    this.programs = new ProgramRunner(bundle, this.sessions);
    if (accelerator === undefined) return;
    const { executionProviders } = accelerator;
    this.accelerated = new Sessions(bundle, accelerator.ort ?? ort, { ...options, executionProviders });
    const other = new ProgramRunner(bundle, this.accelerated);
    this.compared = new ComparedPrograms(bundle.manifest, this.programs, other);
    this.programs = this.compared;
  }

  /** One verdict for each program that has run with an accelerator. */
  get verdicts(): readonly Verdict[] {
    return this.compared?.verdicts ?? [];
  }

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
   * @param between called before each call of the program, for all batches together.
   * @throws BatchError every label of every batch is ignored.
   * @throws TrainingError a loss or the gradient is not finite, or ONNX Runtime failed. `state` stays as it was.
   */
  async train(
    state: TrainState,
    batches: readonly Tensors[],
    lr: number,
    step: number,
    between?: BetweenCalls,
  ): Promise<Step> {
    let [lossSum, lossWeight] = [0, 0];
    const sums = new Accumulators(this.bundle.manifest.buckets);
    for (const [i, batch] of batches.entries()) {
      const counted = between && ((done: number, calls: number) => between(i * calls + done, batches.length * calls));
      const given = { ...batch, ...state.parameters };
      const found = await this.programs.run("train", given, { sums, between: counted });
      [lossSum, lossWeight] = [lossSum + scalar(found, LOSS_SUM), lossWeight + scalar(found, LOSS_WEIGHT)];
      checkFinite("loss", lossSum, step, lr);
    }
    if (lossWeight === 0) throw noLabelCounts();
    const [after, gradNorm] = await this.update(state, sums.tensors(), lr, step, 1 / lossWeight);
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
    const results = await this.sessions.run(
      OPTIMIZER,
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
    const results = specs.map((spec) => spec.gradient!);
    const found = await this.programs.run("select", { ...batch, ...state.parameters }, { results });
    return results.map((name) => found[name]!);
  }

  /** Returns loss and outputs of one batch. */
  async evaluate(state: TrainState, batch: Tensors, between?: BetweenCalls): Promise<EvalResult> {
    const found = await this.programs.run("eval", { ...batch, ...state.parameters }, { between });
    return { lossSum: scalar(found, LOSS_SUM), lossWeight: scalar(found, LOSS_WEIGHT), outputs: this.outputs(found) };
  }

  /** Returns the outputs of one batch without labels. */
  async infer(state: TrainState, inputs: Tensors, between?: BetweenCalls): Promise<Tensors> {
    return this.outputs(await this.programs.run("infer", { ...inputs, ...state.parameters }, { between }));
  }

  /** Runs the program `generate` once: the logits of the last position, and the cache with the new positions. */
  async decode(
    state: TrainState,
    inputs: Tensors,
    cache: Cache | null,
    between?: BetweenCalls,
  ): Promise<{ logits: Tensor; cache: Cache }> {
    const { generation } = this.bundle.manifest;
    const parts = generation!.cache;
    const batch = inputs[generation!.ids]!.dims[0]!;
    const past = cache ?? Object.fromEntries(parts.map((part) => [part.past, emptyCache(part.shape, batch)]));
    const found = await this.programs.run("generate", { ...inputs, ...past, ...state.parameters }, { between });
    const next = parts.map((part) => [part.past, found[part.present]!]);
    return { logits: found[LOGITS]!, cache: Object.fromEntries(next) as Cache };
  }

  private outputs(found: Tensors): Tensors {
    return Object.fromEntries(this.bundle.manifest.outputs.map(({ name }) => [name, found[name]!]));
  }

  /** Releases the sessions. */
  async close(): Promise<void> {
    await this.accelerated?.close();
    await this.sessions.close();
  }
}

/** Returns keys or values of no positions. */
function emptyCache(shape: readonly (number | string)[], batch: number): Tensor {
  return tensorOf(
    "float32",
    shape.map((dim) => (dim === "batch" ? batch : dim === "past" ? 0 : Number(dim))),
  );
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
