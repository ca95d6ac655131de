/** Picks the elements that train, by the size of their gradient: once, before the first step (section 3 of the SPEC). */

import type { Engine, TrainState } from "../engine/engine.js";
import { TrainingError } from "../errors.js";
import { type Manifest, type SparseSpec, sizeOf } from "../bundle/manifest.js";
import { Tensor, type Tensors, numbersOf } from "../files/tensors.js";

/** Returns the ascending indices of the `count` largest values; of equal values, the first ones. */
export function largest(sizes: Float32Array, count: number): Int32Array {
  const bound = sizes.slice().sort()[sizes.length - count]!;
  let equal = count - sizes.reduce((above, size) => above + Number(size > bound), 0);
  const indices: number[] = [];
  sizes.forEach((size, index) => {
    if (size > bound || (size === bound && equal-- > 0)) indices.push(index);
  });
  return Int32Array.from(indices);
}

/** Returns the sparse tensors whose indices are still to be picked. */
export function toPick(manifest: Manifest, state: TrainState): readonly SparseSpec[] {
  return manifest.sparse.filter(
    (spec) => spec.gradient !== null && Number(numbersOf(state.parameters[spec.indices]!)[0]) < 0,
  );
}

/**
 * Returns indices for all tensors that still need them: where the summed gradient magnitudes are largest.
 *
 * @throws TrainingError a gradient is not finite.
 */
export async function pick(
  engine: Engine,
  manifest: Manifest,
  state: TrainState,
  batches: readonly Tensors[],
): Promise<Tensors> {
  const indices: Record<string, Tensor> = {};
  // One dense gradient is in memory at a time: running the few batches again is cheaper than more memory.
  for (const spec of toPick(manifest, state)) {
    const sizes = new Float32Array(sizeOf(spec));
    for (const batch of batches) {
      const [gradient] = await engine.gradients(state, batch, [spec]);
      (numbersOf(gradient!) as Float32Array).forEach((value, i) => (sizes[i]! += Math.abs(value)));
    }
    if (!sizes.every(Number.isFinite)) {
      const message = `The gradient of ${spec.tensor} is not finite, so no elements can be picked by it.`;
      const context = "the first batches decide which elements train";
      throw new TrainingError("diverged", message, context, "look for extreme values in the data.");
    }
    const count = sizeOf(manifest.parameters.find(({ name }) => name === spec.indices)!);
    indices[spec.indices] = new Tensor("int32", largest(sizes, count), [count]);
  }
  return indices;
}
