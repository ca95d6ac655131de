/** Converts prompts and answers of causal language models to token ids (section 7 of the SPEC). */

import type { Manifest } from "../bundle/manifest.js";
import { DataError } from "../errors.js";
import { quoted } from "../shown.js";
import { type TokenRow, type Texts, type Tokenizer, longestOf, tokenSet } from "./tokens.js";

/** Where the prompt belongs in a template. */
const PLACEHOLDER = "{prompt}";

/** A prompt, and the answer that the model learns. */
export interface Example {
  readonly prompt: string;
  readonly answer: string;
}

/** Converts prompts and answers to token ids; create one with {@link Prompter.of}. */
export class Prompter {
  private constructor(
    private readonly manifest: Manifest,
    private readonly tokenizer: Tokenizer,
    private readonly template: string,
  ) {}

  /**
   * @param template a text with `{prompt}` in it; by default the bundle's own, or else the bare prompt.
   * @throws DataError the bundle does not accept text, or the template does not contain the placeholder exactly once.
   */
  static of(manifest: Manifest, tokenizer: Tokenizer, template?: string): Prompter {
    longestOf(manifest);
    const chosen = template ?? manifest.text?.template ?? PLACEHOLDER;
    if (chosen.split(PLACEHOLDER).length !== 2) {
      const message = "The template must contain the placeholder of the prompt exactly once.";
      const hint = `write ${PLACEHOLDER} where the prompt belongs.`;
      throw new DataError("bad-template", message, `found ${quoted(chosen)}`, hint);
    }
    return new Prompter(manifest, tokenizer, chosen);
  }

  /** Returns the ids of a prompt in its template, without the special tokens with which a text ends. */
  prompt(prompt: string): readonly number[] {
    const { ids, start, end } = this.encoded(prompt);
    return start === end ? ids : ids.slice(0, end);
  }

  /** Returns the ids of an answer, and the end token if the model has one. */
  answer(answer: string): readonly number[] {
    const { ids } = this.tokenizer.encode(answer, { add_special_tokens: false });
    return [...ids, ...(this.manifest.generation?.end.slice(0, 1) ?? [])];
  }

  /**
   * Returns a data set of prompts and answers, of which the answers are learned. A prompt that is too long is cut on the
   * left, after the special tokens with which it begins.
   *
   * @throws DataError an answer is empty, or does not fit.
   */
  answered(examples: readonly Example[]): Texts {
    const longest = longestOf(this.manifest);
    const pairs = examples.map((example) => this.pair(example, longest));
    return tokenSet(
      this.manifest,
      pairs.map(({ row }) => row),
      pairs.map(({ tokens }) => tokens),
    );
  }

  private pair({ prompt, answer }: Example, longest: number): { row: TokenRow; tokens: number } {
    if (answer === "")
      throw new DataError("no-tokens", "An answer is empty.", `prompt: ${quoted(prompt)}`, "write one.");
    const [before, after] = [this.prompt(prompt), this.answer(answer)];
    if (after.length + 1 > longest) {
      const facts = `it has ${after.length} tokens with its end; at most ${longest} fit, one of them for the prompt`;
      const hint = "shorten it, or prepare the bundle with a greater max_length.";
      throw new DataError("answer-too-long", "The answer does not fit.", facts, hint);
    }
    const tokens = before.length + after.length;
    const excess = Math.max(tokens - longest, 0);
    const first = Math.min(excess > 0 ? this.encoded(prompt).start : 0, longest - after.length);
    const kept = [...before.slice(0, first), ...before.slice(first + excess)];
    return { row: { ids: [...kept, ...after], learned: after.length }, tokens };
  }

  /** Returns the ids of a prompt with all special tokens, and where its own ids start and end among them. */
  private encoded(prompt: string): { ids: readonly number[]; start: number; end: number } {
    const text = this.template.replace(PLACEHOLDER, () => prompt);
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: true });
    const own = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const start = Math.max(
      ids.findIndex((_, i) => own.every((id, j) => ids[i + j] === id)),
      0,
    );
    return { ids, start, end: Math.min(start + own.length, ids.length) };
  }
}
