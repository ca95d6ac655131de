/** Loss and accuracy of a model on a data set. */

import type { Manifest } from "../bundle/manifest.js";
import { checkedBatch, examplesIn } from "../data/batch.js";
import type { Source } from "../data/datasets.js";
import { DataError } from "../errors.js";
import { type Tensors, numbersOf } from "../files/tensors.js";
import type { Engine, TrainState } from "./engine.js";
import type { BetweenCalls } from "./program.js";

/** Loss and accuracy on a data set. */
export interface Evaluation {
  /** Mean over all labels that are not ignored, weighted as the loss weights them. */
  readonly loss: number;
  /** Fraction of correct labels, 0 to 1; `null` without class labels. */
  readonly accuracy: number | null;
  /** Number of examples. */
  readonly examples: number;
}

/**
 * Evaluates a state on all batches of a source.
 *
 * @param between called before each call of a graph.
 * @throws BatchError a batch does not fit the bundle.
 * @throws DataError there are no batches, or every label is ignored.
 */
export async function evaluate(
  engine: Engine,
  manifest: Manifest,
  state: TrainState,
  source: Source,
  between?: BetweenCalls,
): Promise<Evaluation> {
  const sums = { loss: 0, weight: 0, examples: 0, correct: 0, total: 0 };
  for await (const batch of source.batches(0)) {
    const tensors = checkedBatch(batch, manifest);
    const { lossSum, lossWeight, outputs } = await engine.evaluate(state, tensors, between);
    const { correct, total } = countCorrect(outputs, tensors, manifest);
    sums.loss += lossSum;
    sums.weight += lossWeight;
    sums.examples += examplesIn(tensors, manifest);
    sums.correct += correct;
    sums.total += total;
  }
  if (sums.weight === 0) {
    const context = sums.examples > 0 ? "every label is ignored." : "the data has no batches.";
    throw new DataError("no-data", "There is nothing to evaluate.", context, "pass labelled examples.");
  }
  const accuracy = sums.total > 0 ? sums.correct / sums.total : null;
  return { loss: sums.loss / sums.weight, accuracy, examples: sums.examples };
}

/** Kinds of losses whose class labels may be those of the first output. */
const WITH_ACCURACY = ["cross_entropy", "causal_lm", "focal", "weighted_sum"];

/**
 * Counts correct labels and all labels, by the argmax over the last axis of the first output.
 *
 * Ignored labels are left out. For `causal_lm` position t predicts label t + 1, as in the loss. Both counts are 0 where
 * output and label do not have the shapes of a classification.
 */
export function countCorrect(outputs: Tensors, batch: Tensors, manifest: Manifest): { correct: number; total: number } {
  const { kind } = manifest.loss;
  const [label, ...others] = manifest.labels.filter(({ classes }) => classes !== null);
  const counts = { correct: 0, total: 0 };
  if (label === undefined || others.length > 0 || !WITH_ACCURACY.includes(kind)) return counts;
  const scores = outputs[manifest.outputs[0]!.name]!;
  const labels = batch[label.name]!;
  if (String(scores.dims.slice(0, -1)) !== String(labels.dims)) return counts;
  const [values, classes] = [numbersOf(scores) as Float32Array, numbersOf(labels)];
  const [width, length] = [scores.dims.at(-1)!, labels.dims.at(-1)!];
  const shift = kind === "causal_lm" ? 1 : 0;
  for (let i = 0; i + shift < classes.length; i++) {
    const expected = Number(classes[i + shift]);
    if (expected === label.ignore_index || (shift === 1 && i % length === length - 1)) continue;
    counts.total += 1;
    counts.correct += Number(argmax(values, i * width, width) === expected);
  }
  return counts;
}

function argmax(values: Float32Array, start: number, width: number): number {
  let best = 0;
  for (let i = 1; i < width; i++) if (values[start + i]! > values[start + best]!) best = i;
  return best;
}
