/** Data sets of tokenized texts, padded to the longest of each batch. */

import type { Manifest, TensorSpec } from "../bundle/manifest.js";
import { DataError } from "../errors.js";
import { Tensor } from "../files/tensors.js";
import type { Batch } from "./batch.js";
import type { Dataset } from "./datasets.js";

/** The part of a tokenizer that is used. Segment ids are not: those of single texts are zeros. */
export interface Tokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: readonly number[] };
}

/** A data set whose batches are in memory. */
export interface Texts extends Dataset {
  /** Messages about the texts, one of each kind: how many were cut. */
  readonly notices: readonly string[];
  batch(rows: readonly number[]): Batch;
}

/** A tokenized text. */
export interface TokenRow {
  readonly ids: readonly number[];
  /** The number of ids at the end that are labels of a causal language model. */
  readonly learned: number;
}

type TextSpec = NonNullable<Manifest["text"]>;

/** Returns how the bundle accepts text. @throws DataError it does not, or not alone. */
export function textSpecOf(manifest: Manifest): TextSpec {
  const spec = manifest.text;
  const odd = manifest.inputs.find((input) => (spec?.fields.get(input.name) ?? "decoder_ids") === "decoder_ids");
  if (spec !== null && odd === undefined) return spec;
  const [context, hint] = [`input: ${odd?.name}`, "give the data as arrays."];
  throw new DataError("no-text", "The bundle does not accept text alone.", context, hint);
}

/** Returns the largest number of tokens of a text. */
export function longestOf(manifest: Manifest): number {
  const most = manifest.inputs.map((input) => limit(input, manifest, "max") ?? Infinity);
  return Math.min(textSpecOf(manifest).max_length, ...most);
}

/**
 * Returns a data set of tokenized texts.
 *
 * @param lengths tokens of each text before it was cut.
 * @param labels one per text; without them, the labels of a causal language model are the ids that it learns.
 */
export function tokenSet(
  manifest: Manifest,
  texts: readonly TokenRow[],
  lengths: readonly number[],
  labels?: readonly number[],
): Texts {
  const spec = textSpecOf(manifest);
  const least = Math.max(...manifest.inputs.map((input) => limit(input, manifest, "min") ?? 1));
  const [label] = manifest.labels;
  const nextToken = manifest.loss.kind === "causal_lm" && labels === undefined;
  return {
    length: texts.length,
    notices: cutNotice(lengths, longestOf(manifest)),
    batch(rows) {
      const chosen = rows.map((row) => texts[row]!);
      const width = Math.max(least, ...chosen.map(({ ids }) => ids.length));
      const filled = (fill: number, value: (id: number, index: number, row: TokenRow) => number): Tensor => {
        const data = new BigInt64Array(rows.length * width).fill(BigInt(fill));
        chosen.forEach((row, i) => row.ids.forEach((id, j) => (data[i * width + j] = BigInt(value(id, j, row)))));
        return new Tensor("int64", data, [rows.length, width]);
      };
      const batch = Object.fromEntries(manifest.inputs.map((input) => [input.name, column(spec, input.name, filled)]));
      if (label === undefined) return batch;
      if (labels !== undefined) return { ...batch, [label.name]: rows.map((row) => labels[row]!) };
      if (!nextToken) return batch;
      const ignored = label.ignore_index ?? -100;
      const learned = filled(ignored, (id, j, { ids, learned }) => (j >= ids.length - learned ? id : ignored));
      return { ...batch, [label.name]: learned };
    },
  };
}

function column(spec: TextSpec, name: string, filled: (fill: number, value: (id: number) => number) => Tensor): Tensor {
  const field = spec.fields.get(name);
  if (field === "ids") return filled(spec.pad_id, (id) => id);
  return filled(0, () => (field === "attention_mask" ? 1 : 0));
}

function cutNotice(lengths: readonly number[], longest: number): readonly string[] {
  const cut = lengths.filter((length) => length > longest);
  if (cut.length === 0) return [];
  const most = cut.reduce((a, b) => Math.max(a, b));
  return [`${cut.length} of ${lengths.length} texts are cut to ${longest} tokens; the longest has ${most}.`];
}

function limit(spec: TensorSpec, manifest: Manifest, which: "min" | "max"): number | null {
  const dim = spec.shape[1]!;
  return typeof dim === "number" ? dim : manifest.dimensions.get(dim)![which];
}
