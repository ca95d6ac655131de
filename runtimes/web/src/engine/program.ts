/** Runs the programs of a bundle: values by name, each freed after the last call that reads it. */

import type { Bundle } from "../bundle/bundle.js";
import { type Plan, type PlannedCall, resultsOf } from "../bundle/plan.js";
import type { ProgramName } from "../bundle/programs.js";
import type { Tensor, Tensors } from "../files/tensors.js";
import type { Accumulators } from "./accumulators.js";
import { nextTask } from "./next_task.js";
import type { Sessions } from "./sessions.js";
import { Slot } from "./slots.js";

/** Called before each call of a program, with the calls done and those in all; what it throws ends the program. */
export type BetweenCalls = (done: number, calls: number) => void | Promise<void>;

export interface RunOptions {
  /** The values to return; by default all results of the program. */
  readonly results?: readonly string[];
  /** To which gradients are added; needed for `train`. */
  readonly sums?: Accumulators;
  readonly between?: BetweenCalls | undefined;
}

/** Runs the programs of a bundle. */
export interface Programs {
  run(program: ProgramName, given: Tensors, options?: RunOptions): Promise<Tensors>;
}

export class ProgramRunner implements Programs {
  private readonly plans = new Map<string, Plan>();
  /** Slots that no run uses at present. */
  private readonly spare: [Slot, Slot][] = [];

  constructor(
    private readonly bundle: Bundle,
    private readonly sessions: Sessions,
  ) {}

  /**
   * Runs the calls of a program that are needed.
   *
   * @param given the batch and the parameters.
   * @throws BundleError a graph cannot be loaded, or a gradient does not fit its bucket.
   * @throws TrainingError ONNX Runtime failed.
   */
  async run(program: ProgramName, given: Tensors, { results, sums, between }: RunOptions = {}): Promise<Tensors> {
    const wanted = results ?? resultsOf(this.bundle.manifest, program);
    const plan = this.plan(program, wanted);
    const values = new Map(Object.entries(given));
    const slots = this.spare.pop() ?? [new Slot(), new Slot()];
    let coming = this.frozen(plan[0], slots[0]);
    try {
      for (const [index, call] of plan.entries()) {
        // The weights of the next call are read while this one runs: those of two calls at most are in memory.
        const weights = await coming;
        coming = this.frozen(plan[index + 1], slots[(index + 1) % 2]!);
        coming.catch(() => undefined);
        await nextTask();
        await between?.(index, plan.length);
        await this.call(call, values, weights, sums);
        for (const name of call.frees) {
          values.get(name)?.dispose();
          values.delete(name);
        }
      }
    } finally {
      await coming.catch(() => undefined);
      this.spare.push(slots);
    }
    return Object.fromEntries(wanted.map((name) => [name, values.get(name)!]));
  }

  private plan(program: ProgramName, wanted: readonly string[]): Plan {
    const key = JSON.stringify([program, ...wanted]);
    const plan = this.plans.get(key) ?? this.bundle.plan(program, wanted);
    this.plans.set(key, plan);
    return plan;
  }

  /** Reads the frozen tensors of a call into a slot, by the names of their values. */
  private async frozen(call: PlannedCall | undefined, slot: Slot): Promise<ReadonlyMap<string, Tensor>> {
    const values = [...new Set(call?.reads.values())].filter((value) => this.bundle.frozenBytes(value) !== null);
    const parts = slot.parts(values.map((value) => this.bundle.frozenBytes(value)!));
    const read = values.map(async (value, i) => [value, await this.bundle.frozen(value, parts[i])] as const);
    return new Map(await Promise.all(read));
  }

  private async call(
    call: PlannedCall,
    values: Map<string, Tensor>,
    weights: ReadonlyMap<string, Tensor>,
    sums?: Accumulators,
  ): Promise<void> {
    const inputs = [...call.reads].map(([name, value]) => [name, values.get(value) ?? weights.get(value)!]);
    const outputs = new Set([...call.writes.keys(), ...call.accumulate.map(({ output }) => output)]);
    const found = await this.sessions.run(call.graph, [...outputs], Object.fromEntries(inputs) as Tensors);
    for (const weight of weights.values()) weight.dispose();
    for (const [output, value] of call.writes) values.set(value, found[output]!);
    for (const item of call.accumulate) sums?.add(item, found[item.output]!);
  }
}
