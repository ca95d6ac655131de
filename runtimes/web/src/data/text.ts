/** Converts texts to token ids, with a tokenizer that the caller passes in (`@huggingface/tokenizers`). */

import type { Batch } from "./batch.js";
import type { Dataset } from "./datasets.js";
import { DataError } from "../errors.js";
import type { Manifest, TensorSpec } from "../bundle/manifest.js";
import { Tensor } from "../files/tensors.js";

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

type TextSpec = NonNullable<Manifest["text"]>;

/**
 * Returns a data set of texts, cut to the bundle's longest and padded per batch.
 *
 * @param labels one per text, of the bundle's only label; without them the data set is for `predict`, or for a causal
 *     language model, whose labels are the ids themselves.
 * @throws DataError the bundle does not take text, or a text has no tokens.
 */
export function texts(
  texts: readonly string[],
  manifest: Manifest,
  tokenizer: Tokenizer,
  labels?: readonly number[],
): Texts {
  const spec = manifest.text;
  const odd = manifest.inputs.find((input) => !spec?.fields.has(input.name));
  if (spec === null || odd !== undefined) {
    throw new DataError(
      "no-text",
      "The bundle does not take text alone.",
      `input: ${odd?.name}`,
      "give the data as arrays.",
    );
  }
  const longest = Math.min(
    spec.max_length,
    ...manifest.inputs.map((input) => limit(input, manifest, "max") ?? Infinity),
  );
  const least = Math.max(...manifest.inputs.map((input) => limit(input, manifest, "min") ?? 1));
  const whole = texts.map((text) => encode(text, tokenizer));
  const encoded = whole.map((ids, row) => (ids.length <= longest ? ids : cut(ids, texts[row]!, tokenizer, longest)));
  const [label] = manifest.labels;
  const nextToken = manifest.loss.kind === "causal_lm" && labels === undefined;
  return {
    length: texts.length,
    notices: cutNotice(
      whole.map((ids) => ids.length),
      longest,
    ),
    batch(rows) {
      const width = Math.max(least, ...rows.map((row) => encoded[row]!.length));
      const dims = [rows.length, width];
      const filled = (fill: number, value: (id: number) => number): Tensor => {
        const data = new BigInt64Array(rows.length * width).fill(BigInt(fill));
        rows.forEach((row, i) => encoded[row]!.forEach((id, j) => (data[i * width + j] = BigInt(value(id)))));
        return new Tensor("int64", data, dims);
      };
      const batch = Object.fromEntries(manifest.inputs.map((input) => [input.name, column(spec, input.name, filled)]));
      if (label !== undefined && nextToken) batch[label.name] = filled(label.ignore_index ?? -100, (id) => id);
      if (label === undefined || labels === undefined) return batch;
      return { ...batch, [label.name]: rows.map((row) => labels[row]!) };
    },
  };
}

function column(spec: TextSpec, name: string, filled: (fill: number, value: (id: number) => number) => Tensor): Tensor {
  const field = spec.fields.get(name);
  if (field === "ids") return filled(spec.pad_id, (id) => id);
  return filled(0, () => (field === "attention_mask" ? 1 : 0));
}

function encode(text: string, tokenizer: Tokenizer): readonly number[] {
  const { ids } = tokenizer.encode(text, { add_special_tokens: true });
  if (ids.length === 0) throw new DataError("no-tokens", "A text has no tokens.", text.slice(0, 60), "leave it out.");
  return ids;
}

/** Cuts tokens from the end of a text that is too long, but keeps the special tokens around it. */
function cut(ids: readonly number[], text: string, tokenizer: Tokenizer, longest: number): readonly number[] {
  const bare = tokenizer.encode(text, { add_special_tokens: false }).ids;
  const before = ids.findIndex((_, i) => bare.every((id, j) => ids[i + j] === id));
  const room = longest - (ids.length - bare.length);
  return [...ids.slice(0, before), ...bare.slice(0, room), ...ids.slice(before + bare.length)];
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
