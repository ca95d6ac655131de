/** Text generation by a causal language model, token by token: greedy or sampled, with a cache if there is one. */

import type { AdapterSource } from "../bundle/adapter_source.js";
import type { Manifest } from "../bundle/manifest.js";
import { positive, require } from "../checks.js";
import { Generator } from "../data/random.js";
import { BatchError } from "../errors.js";
import { Tensor, type Tensors, numbersOf } from "../files/tensors.js";
import type { Cache, Engine, TrainState } from "./engine.js";
import type { BetweenCalls } from "./program.js";

/** How `generate` chooses tokens, and when a text ends. */
export interface Sampling {
  /** Tokens to generate at most; fewer if the model has no positions for more: 64. */
  readonly maxNewTokens?: number;
  /** Another adapter for this call alone. */
  readonly adapter?: AdapterSource;
  /** Temperature of sampling; 0 takes the likeliest token, 1 keeps the model's probabilities: 0. */
  readonly temperature?: number;
  /** Sample only among this many likeliest tokens. */
  readonly topK?: number;
  /** Sample only among the fewest likeliest tokens with this total probability. */
  readonly topP?: number;
  /** Seed of the sampling: 0. Equal seeds draw as the Python runtime does. */
  readonly seed?: number;
  /** Tokens that end the text: the bundle's. */
  readonly stop?: readonly number[];
  /** Called with each new token, and awaited. */
  readonly progress?: (token: number) => void | Promise<void>;
  /** Ends the call before the next call of a graph; the signal's reason is thrown. */
  readonly signal?: AbortSignal;
}

type Spec = Pick<NonNullable<Manifest["generation"]>, "ids" | "attention_mask" | "end" | "cache">;

/**
 * Returns the new tokens after a prompt.
 *
 * @throws BatchError the prompt is empty, too long, or contains ids that are not tokens of the model; or the bundle does
 *     not say how to generate text with it.
 */
export async function generate(
  engine: Engine,
  manifest: Manifest,
  state: TrainState,
  prompt: readonly number[],
  sampling: Sampling,
): Promise<number[]> {
  const { maxNewTokens = 64, seed = 0, signal, progress } = sampling;
  positive("maxNewTokens", maxNewTokens);
  checkSampling(sampling);
  const [spec, most] = [specOf(manifest), limit(manifest, "max")];
  checkPrompt(prompt, manifest, most);
  const between: BetweenCalls = () => signal?.throwIfAborted();
  const next =
    spec.cache.length > 0 ? cached(engine, spec, state, between) : uncached(engine, manifest, spec, state, between);
  const [stop, draw] = [new Set(sampling.stop ?? spec.end), new Generator([seed])];
  const tokens = [...prompt];
  const count = Math.min(maxNewTokens, (most ?? Infinity) - prompt.length);
  while (tokens.length < prompt.length + count) {
    const token = choose(await next(tokens), sampling, draw);
    tokens.push(token);
    await progress?.(token);
    if (stop.has(token)) break;
  }
  return tokens.slice(prompt.length);
}

/** Returns the scores of the next token of a text. */
type Reader = (tokens: readonly number[]) => Promise<Float32Array>;

/** Runs the program `generate` on the tokens that it has not read yet. */
function cached(engine: Engine, spec: Spec, state: TrainState, between: BetweenCalls): Reader {
  let [cache, read]: [Cache | null, number] = [null, 0];
  return async (tokens) => {
    const inputs = {
      [spec.ids]: integers(tokens.slice(read)),
      [spec.attention_mask!]: integers(tokens.map(() => 1)),
    };
    const found = await engine.decode(state, inputs, cache, between);
    [cache, read] = [found.cache, tokens.length];
    return numbersOf(found.logits) as Float32Array;
  };
}

/** Runs the program `infer` on the whole text. */
function uncached(engine: Engine, manifest: Manifest, spec: Spec, state: TrainState, between: BetweenCalls): Reader {
  const [least, pad] = [limit(manifest, "min") ?? 1, manifest.text?.pad_id ?? 0];
  return async (tokens) => {
    const missing = Math.max(least - tokens.length, 0);
    const padded = (values: readonly number[], fill: number): readonly number[] => [
      ...values,
      ...Array<number>(missing).fill(fill),
    ];
    const known: Tensors = { [spec.ids]: integers(padded(tokens, pad)) };
    const mask = integers(
      padded(
        tokens.map(() => 1),
        0,
      ),
    );
    const inputs = manifest.inputs.map(({ name, dtype }) => [name, cast(known[name] ?? mask, dtype)]);
    const outputs = await engine.infer(state, Object.fromEntries(inputs) as Tensors, between);
    const logits = outputs[manifest.outputs[0]!.name]!;
    const width = logits.dims.at(-1)!;
    return (numbersOf(logits) as Float32Array).subarray((tokens.length - 1) * width, tokens.length * width);
  };
}

/** Chooses one token by its scores. */
function choose(logits: Float32Array, { temperature = 0, topK, topP }: Sampling, draw: Generator): number {
  if (temperature === 0) return logits.reduce((best, score, i) => (score > logits[best]! ? i : best), 0);
  let order = Array.from(logits.keys())
    .sort((a, b) => logits[b]! - logits[a]!)
    .slice(0, topK);
  const powers = order.map((token) => Math.exp((logits[token]! - logits[order[0]!]!) / temperature));
  let sums = cumulative(powers, 1 / powers.reduce((sum, power) => sum + power, 0));
  if (topP !== undefined) {
    const count = Math.min(sums.findIndex((sum) => sum >= topP) + 1 || order.length, order.length);
    order = order.slice(0, count);
    sums = sums.slice(0, count).map((sum) => sum / sums[count - 1]!);
  }
  const drawn = draw.random();
  const rank = sums.findIndex((sum) => sum > drawn);
  return order[rank < 0 ? order.length - 1 : rank]!;
}

function cumulative(values: readonly number[], factor: number): number[] {
  let sum = 0;
  return values.map((value) => (sum += value * factor));
}

function checkSampling({ temperature = 0, topK, topP, seed = 0 }: Sampling): void {
  require("temperature", temperature, Number.isFinite(temperature) && temperature >= 0, "a number of at least 0");
  if (topK !== undefined) positive("topK", topK);
  require("topP", topP, topP === undefined || (topP > 0 && topP <= 1), "a number above 0, 1 at most");
  require("seed", seed, Number.isSafeInteger(seed) && seed >= 0, "a whole number of at least 0");
}

/** Returns how the bundle generates. A bundle without `generation` may say so by its text fields. */
function specOf(manifest: Manifest): Spec {
  if (manifest.generation !== null) return manifest.generation;
  const fields = new Map([...(manifest.text?.fields ?? [])].map(([name, kind]) => [kind, name]));
  const ids = fields.get("ids");
  if (manifest.loss.kind !== "causal_lm" || ids === undefined || fields.size !== manifest.inputs.length) {
    throw new BatchError(
      "cannot-generate",
      "The bundle does not say how to generate text with it.",
      `loss: ${manifest.loss.kind}; manifest.json has no 'generation'`,
      "prepare a causal language model with the loss causal_lm.",
    );
  }
  return { ids, attention_mask: fields.get("attention_mask") ?? null, end: [], cache: [] };
}

/** Returns the number of tokens of the shortest or longest text that the model can read; `null` without a limit. */
function limit(manifest: Manifest, which: "min" | "max"): number | null {
  const dim = manifest.inputs[0]!.shape[1]!;
  return typeof dim === "number" ? dim : manifest.dimensions.get(dim)![which];
}

function checkPrompt(prompt: readonly number[], manifest: Manifest, most: number | null): void {
  if (prompt.length === 0 || !prompt.every((id) => Number.isSafeInteger(id) && id >= 0)) {
    const [context, hint] = [`${prompt.length} ids`, "tokenize the text first."];
    throw new BatchError("bad-prompt", "A prompt must be a list of token ids, at least one.", context, hint);
  }
  const tokens = manifest.outputs[0]!.shape.at(-1);
  const largest = prompt.reduce((a, b) => Math.max(a, b));
  if (typeof tokens === "number" && largest >= tokens) {
    const context = `largest id ${largest}; ids are 0 to ${tokens - 1}`;
    const message = "A prompt contains an id that is not a token of the model.";
    throw new BatchError("bad-prompt", message, context, "use the model's own tokenizer.");
  }
  if (most !== null && prompt.length >= most) {
    const context = `it has ${prompt.length} tokens; prompt and new tokens may have ${most}`;
    throw new BatchError("prompt-too-long", "A prompt leaves no positions for new tokens.", context, "shorten it.");
  }
}

/** Returns whole numbers as one row, int64. */
function integers(values: readonly number[]): Tensor {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

function cast(row: Tensor, dtype: string): Tensor {
  if (dtype === "int64") return row;
  const values = Array.from(numbersOf(row) as BigInt64Array, Number);
  if (dtype === "int32") return new Tensor("int32", Int32Array.from(values), row.dims);
  return new Tensor("float32", Float32Array.from(values), row.dims);
}
