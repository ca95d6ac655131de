/**
 * Another execution provider, such as WebGPU, which is compared with ONNX Runtime's CPU kernels before its results are used.
 *
 * A provider can be wrong without an error: kernels that it cannot start return zeros, and kernels are wrong for some shapes
 * only. So each program runs on both at first. Where they differ, or the provider fails, the program runs on the CPU.
 */

import type { ProgramName } from "../bundle/programs.js";
import type { Manifest } from "../bundle/manifest.js";
import { LOSS_SUM } from "../bundle/plan.js";
import { BundleError, TrainingError } from "../errors.js";
import { type Tensor, type Tensors, numbersOf } from "../files/tensors.js";
import type { Ort } from "../ort.js";
import { Accumulators } from "./accumulators.js";
import type { Programs, RunOptions } from "./program.js";

/** Runs with different shapes that are compared, for each program. */
const COMPARED_SHAPES = 3;
/** Largest relative difference of a loss, and of other tensors by their L2 norms. */
const LOSS_LIMIT = 1e-3;
const TENSOR_LIMIT = 1e-2;
/** Root mean square below which a tensor counts as zero. */
const ZERO = 1e-6;

export interface Accelerator {
  /** The package of ONNX Runtime that has the provider, such as `onnxruntime-web/webgpu`; by default the trainer's own. */
  readonly ort?: Ort;
  /** The providers in order of preference: `["webgpu"]`. */
  readonly executionProviders: readonly string[];
}

/** The result of the comparison of a program. */
export interface Verdict {
  readonly program: ProgramName;
  /** Whether the accelerator runs the program. */
  readonly accepted: boolean;
  /** The largest difference, or why the program runs on the CPU, in one line. */
  readonly facts: string;
}

/** Runs programs on an accelerator where it agrees with the CPU, else on the CPU. */
export class ComparedPrograms implements Programs {
  private readonly compared = new Map<ProgramName, Set<string>>();
  private readonly found = new Map<ProgramName, Verdict>();

  constructor(
    private readonly manifest: Manifest,
    private readonly cpu: Programs,
    private readonly accelerated: Programs,
  ) {}

  /** One verdict for each program that has run. */
  get verdicts(): readonly Verdict[] {
    return [...this.found.values()];
  }

  async run(program: ProgramName, given: Tensors, options: RunOptions = {}): Promise<Tensors> {
    if (this.found.get(program)?.accepted === false) return this.cpu.run(program, given, options);
    const [shapes, seen] = [shapesOf(given), this.compared.get(program) ?? new Set<string>()];
    if (seen.has(shapes) || seen.size >= COMPARED_SHAPES) return this.accelerated.run(program, given, options);
    this.compared.set(program, seen.add(shapes));
    return this.compare(program, given, options);
  }

  /** Runs a program on both, and returns the results of the CPU. */
  private async compare(program: ProgramName, given: Tensors, options: RunOptions): Promise<Tensors> {
    const { buckets } = this.manifest;
    const [expected, found] = [new Accumulators(buckets), new Accumulators(buckets)];
    const results = await this.cpu.run(program, given, { ...options, sums: expected });
    try {
      const { between: _, ...others } = options;
      const other = await this.accelerated.run(program, given, { ...others, sums: found });
      const gradients = options.sums === undefined ? [] : differences(expected.tensors(), found.tensors());
      this.found.set(program, verdict(program, [...differences(results, other), ...gradients]));
    } catch (failure) {
      if (!(failure instanceof TrainingError || failure instanceof BundleError)) throw failure;
      this.found.set(program, { program, accepted: false, facts: `it failed: ${failure.context ?? failure.message}` });
    }
    for (const [bucket, sum] of Object.entries(options.sums === undefined ? {} : expected.tensors())) {
      options.sums!.add({ output: bucket, bucket, offset: 0 }, sum);
    }
    return results;
  }
}

interface Difference {
  readonly size: number;
  readonly limit: number;
  readonly facts: string;
}

function verdict(program: ProgramName, found: readonly Difference[]): Verdict {
  const excess = ({ size, limit }: Difference): number => (Number.isFinite(size) ? size / limit : Infinity);
  const worst = found.reduce((a, b) => (excess(b) > excess(a) ? b : a));
  return { program, accepted: excess(worst) <= 1, facts: worst.facts };
}

function differences(expected: Tensors, found: Tensors): Difference[] {
  return Object.entries(expected).map(([name, tensor]) => difference(name, tensor, found[name]!));
}

function difference(name: string, expected: Tensor, found: Tensor): Difference {
  const [a, b] = [numbersOf(expected), numbersOf(found)];
  let [error, norm] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [Number(a[i]), Number(b[i])];
    error += (x - y) ** 2;
    norm += x ** 2;
  }
  const size = a.length === b.length ? Math.sqrt(error) / Math.max(Math.sqrt(norm), ZERO * Math.sqrt(a.length)) : NaN;
  const limit = name === LOSS_SUM ? LOSS_LIMIT : TENSOR_LIMIT;
  const values = a.length === 1 ? `${b[0]} instead of ${a[0]}` : `relative difference ${size.toExponential(1)}`;
  return { size: a.length === 0 ? 0 : size, limit, facts: `${name}: ${values}, limit ${limit}` };
}

function shapesOf(given: Tensors): string {
  return Object.entries(given)
    .map(([name, { dims }]) => `${name}:${dims.join("x")}`)
    .join();
}
