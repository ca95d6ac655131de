/** Converts texts to token ids, with a tokenizer that the caller passes in (`@huggingface/tokenizers`). */

import type { Manifest } from "../bundle/manifest.js";
import { DataError } from "../errors.js";
import { type Texts, type Tokenizer, longestOf, tokenSet } from "./tokens.js";

/**
 * Returns a data set of texts, cut to the bundle's longest and padded per batch.
 *
 * @param labels one per text, of the bundle's only label; without them the data set is for `predict`, or for a causal
 *     language model, whose labels are the ids themselves.
 * @throws DataError the bundle does not accept text, or a text has no tokens.
 */
export function texts(
  texts: readonly string[],
  manifest: Manifest,
  tokenizer: Tokenizer,
  labels?: readonly number[],
): Texts {
  const longest = longestOf(manifest);
  const whole = texts.map((text) => encode(text, tokenizer));
  const rows = whole.map((ids, row) => {
    const fitting = ids.length <= longest ? ids : cut(ids, texts[row]!, tokenizer, longest);
    return { ids: fitting, learned: fitting.length };
  });
  const lengths = whole.map((ids) => ids.length);
  return tokenSet(manifest, rows, lengths, labels);
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
