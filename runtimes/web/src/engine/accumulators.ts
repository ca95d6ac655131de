/** The accumulators of one optimizer step: flat sums of gradients, one per bucket, zero at its start. */

import { badProgram } from "../bundle/plan.js";
import type { Manifest } from "../bundle/manifest.js";
import type { Accumulation } from "../bundle/programs.js";
import { Tensor, type Tensors, numbersOf } from "../files/tensors.js";
import { quoted } from "../shown.js";

/** Sums of gradients. The first gradient of a whole bucket becomes its sum without a copy. */
export class Accumulators {
  private readonly sizes: ReadonlyMap<string, number>;
  private readonly sums = new Map<string, Float32Array>();

  constructor(buckets: Manifest["buckets"]) {
    this.sizes = new Map(buckets.map(({ name, size }) => [name, size]));
  }

  /** Adds a gradient to its part of a bucket; its memory may change from now on. @throws BundleError it does not fit. */
  add({ output, bucket, offset }: Accumulation, gradient: Tensor): void {
    const [size, { type, dims }] = [this.sizes.get(bucket)!, gradient];
    if (type !== "float32" || dims.length !== 1 || offset + dims[0]! > size) {
      const facts = `${quoted(output)}: ${type} [${dims.join(", ")}] at ${offset} of ${size} elements`;
      throw badProgram(`A gradient does not fit into the bucket ${quoted(bucket)}.`, facts);
    }
    const [numbers, sum] = [numbersOf(gradient) as Float32Array, this.sums.get(bucket)];
    if (sum === undefined && numbers.length === size) this.sums.set(bucket, numbers);
    else addTo(this.sumOf(bucket).subarray(offset), numbers);
  }

  /** Returns all sums as inputs of `optimizer.onnx`. */
  tensors(): Tensors {
    const sums = [...this.sizes].map(([name, size]) => [name, new Tensor("float32", this.sumOf(name), [size])]);
    return Object.fromEntries(sums) as Tensors;
  }

  private sumOf(bucket: string): Float32Array {
    const sum = this.sums.get(bucket) ?? new Float32Array(this.sizes.get(bucket)!);
    this.sums.set(bucket, sum);
    return sum;
  }
}

function addTo(sum: Float32Array, numbers: Float32Array): void {
  for (let i = 0; i < numbers.length; i++) sum[i]! += numbers[i]!;
}
