/** Raw text and images become the batches that the workstation would make of them. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Tokenizer } from "@huggingface/tokenizers";
import { type Manifest, type Tensor, imagesOf, texts } from "edgepeft-runtime";
import { refused } from "./support.js";

const WORDS = { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, good: 4, bad: 5, film: 6 };
const tokenizer = new Tokenizer(
  {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: "Whitespace" },
    post_processor: {
      type: "TemplateProcessing",
      single: [
        { SpecialToken: { id: "[CLS]", type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
        { SpecialToken: { id: "[SEP]", type_id: 0 } },
      ],
      pair: [],
      special_tokens: {
        "[CLS]": { id: "[CLS]", ids: [2], tokens: ["[CLS]"] },
        "[SEP]": { id: "[SEP]", ids: [3], tokens: ["[SEP]"] },
      },
    },
    decoder: null,
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: WORDS,
    },
  },
  {},
);

const shape = ["batch", "sequence"];
/** What is asked of a manifest for text and images. */
const MANIFEST = {
  inputs: ["input_ids", "attention_mask"].map((name) => ({ name, dtype: "int64", shape })),
  labels: [{ name: "labels", dtype: "int64", shape: ["batch"], classes: 2, ignore_index: -100 }],
  dimensions: new Map(Object.entries({ batch: { min: 1, max: null }, sequence: { min: 3, max: null } })),
  text: {
    max_length: 5,
    pad_id: 0,
    fields: new Map([
      ["input_ids", "ids"],
      ["attention_mask", "attention_mask"],
    ]),
    template: null,
  },
  loss: { kind: "cross_entropy" },
  image: {
    input: "image",
    size: [1, 2],
    channels: 1,
    mean: [0.5],
    std: [0.25],
    resize: null,
    resample: "bilinear",
    channel_order: "RGB",
  },
} as unknown as Manifest;

const rows = (tensor: unknown): number[] => Array.from((tensor as Tensor).data as BigInt64Array, Number);

describe("texts", () => {
  it("are padded to the longest of their batch, and cut without losing what closes them", () => {
    const data = texts(["good film", "bad bad film good good", "good"], MANIFEST, tokenizer, [1, 0, 1]);
    const batch = data.batch([0, 1]);
    assert.deepEqual(rows(batch["input_ids"]), [2, 4, 6, 3, 0, 2, 5, 5, 6, 3]);
    assert.deepEqual(rows(batch["attention_mask"]), [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]);
    assert.deepEqual(batch["labels"], [1, 0]);
    assert.deepEqual((data.batch([2])["input_ids"] as Tensor).dims, [1, 3]);
    assert.deepEqual(data.notices, ["1 of 3 texts are cut to 5 tokens; the longest has 7."]);
    assert.deepEqual(texts(["good"], MANIFEST, tokenizer).notices, []);
  });

  it("of a language model have their own ids as labels, padding left out", () => {
    const manifest = { ...MANIFEST, loss: { kind: "causal_lm" } } as Manifest;
    const batch = texts(["good film", "bad"], manifest, tokenizer).batch([0, 1]);
    assert.deepEqual(rows(batch["labels"]), [2, 4, 6, 3, 2, 5, 3, -100]);
  });

  it("are refused by a bundle that accepts none", () => {
    assert.throws(() => texts(["good"], { ...MANIFEST, text: null }, tokenizer), refused("no-text"));
  });
});

describe("images", () => {
  it("become normalised luma", () => {
    const data = Uint8ClampedArray.of(255, 255, 255, 255, 255, 0, 0, 255);
    const tensor = imagesOf([{ data, width: 2, height: 1 }], MANIFEST);
    assert.deepEqual(tensor.dims, [1, 1, 1, 2]);
    // Pillow's luma of pure red is 76.
    assert.deepEqual(tensor.data, Float32Array.of(2, (76 / 255 - 0.5) / 0.25));
  });

  it("have their channels in the bundle's order", () => {
    const image = { ...MANIFEST.image!, size: [1, 1], channels: 3, mean: [0, 0, 0], std: [1, 1, 1] };
    const red = { data: Uint8ClampedArray.of(255, 0, 51, 255), width: 1, height: 1 };
    const tensor = imagesOf([red], { ...MANIFEST, image: { ...image, channel_order: "BGR" } });
    assert.deepEqual(tensor.data, Float32Array.of(51 / 255, 0, 1));
  });

  it("of another size are refused", () => {
    const image = { data: new Uint8ClampedArray(16), width: 2, height: 2 };
    assert.throws(() => imagesOf([image], MANIFEST), refused("wrong-shape"));
  });
});
