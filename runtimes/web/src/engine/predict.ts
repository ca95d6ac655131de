/** A model's outputs for inputs of any number of examples. */

import type { Manifest } from "../bundle/manifest.js";
import { positive } from "../checks.js";
import { type Batch, checkedBatch } from "../data/batch.js";
import { sourceOf } from "../data/datasets.js";
import { type Tensors, concatenated } from "../files/tensors.js";
import type { Engine, TrainState } from "./engine.js";

/**
 * Returns the outputs by name. Labels among the inputs are left out.
 *
 * @param batchSize cuts the first axis into batches of this size; without it all examples run at once.
 * @throws BatchError the inputs do not fit the bundle.
 */
export async function predict(
  engine: Engine,
  manifest: Manifest,
  state: TrainState,
  inputs: Batch,
  batchSize?: number,
): Promise<Tensors> {
  const source = sourceOf(batchSize === undefined ? [inputs] : inputs, positive("batchSize", batchSize ?? 1));
  const parts: Tensors[] = [];
  for await (const batch of source.batches(0)) {
    parts.push(await engine.infer(state, checkedBatch(batch, manifest, false)));
  }
  const names = manifest.outputs.map((spec) => spec.name);
  return Object.fromEntries(names.map((name) => [name, concatenated(parts.map((part) => part[name]!))]));
}
