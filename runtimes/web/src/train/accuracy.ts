/** Counts right answers where the labels are classes. */

import type { Manifest } from "../bundle/manifest.js";
import { type Tensors, numbersOf } from "../files/tensors.js";

/**
 * Right answers and answers asked for, by the argmax over the last axis of the first output.
 *
 * Ignored labels are left out. For `causal_lm` position t answers label t + 1, as in the loss. Zeros where the loss or
 * the shapes are of another kind.
 */
export function countRight(outputs: Tensors, batch: Tensors, manifest: Manifest): { right: number; asked: number } {
  const { kind } = manifest.loss;
  const [label, ...others] = manifest.labels.filter(({ classes }) => classes !== null);
  const counts = { right: 0, asked: 0 };
  if (label === undefined || others.length > 0 || !["cross_entropy", "causal_lm"].includes(kind)) return counts;
  const scores = outputs[manifest.outputs[0]!.name]!;
  const wanted = batch[label.name]!;
  if (String(scores.dims.slice(0, -1)) !== String(wanted.dims)) return counts;
  const [values, labels] = [numbersOf(scores) as Float32Array, numbersOf(wanted)];
  const [width, length] = [scores.dims.at(-1)!, wanted.dims.at(-1)!];
  const shift = kind === "causal_lm" ? 1 : 0;
  for (let i = 0; i + shift < labels.length; i++) {
    const answer = Number(labels[i + shift]);
    if (answer === label.ignore_index || (shift === 1 && i % length === length - 1)) continue;
    counts.asked += 1;
    counts.right += Number(argmax(values, i * width, width) === answer);
  }
  return counts;
}

function argmax(values: Float32Array, start: number, width: number): number {
  let best = 0;
  for (let i = 1; i < width; i++) if (values[start + i]! > values[start + best]!) best = i;
  return best;
}
