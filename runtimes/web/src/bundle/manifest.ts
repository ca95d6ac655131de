/** The manifest of a bundle: everything a runtime needs to know. Fields have the names of section 2 of the SPEC. */

import { BundleError } from "../errors.js";
import * as f from "../files/fields.js";
import { MAX_AXES } from "../files/shapes.js";
import { cacheEntry, programs } from "./programs.js";

export const DTYPES = ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"] as const;
export const ROLES = ["lora_A", "lora_B", "bias", "norm", "head", "weight", "indices", "other"] as const;
const RESAMPLES = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] as const;
const CHANNEL_ORDERS = ["RGB", "BGR"] as const;
const LAYOUTS = ["torch", "graph", "experts"] as const;
const MAX_IMAGE_SIDE = 2 ** 14;
const TEXT_FIELDS = ["ids", "attention_mask", "type_ids", "decoder_ids"] as const;

const size = f.check("a size or a name", (v): v is number | string => typeof v === "string" || f.isNatural(v));
const shape = f.list(size, undefined, MAX_AXES);
const tensor = { name: f.text, dtype: f.oneOf(DTYPES), shape };
const cache = { past: f.text, present: f.text, shape };
const bucket = { name: f.text, size: f.natural, members: f.list(f.text), decay: f.flag };
const label = { ...tensor, classes: f.optional(f.integer, null), ignore_index: f.optional(f.integer, null) };
const frozen = { ...tensor, dtype: f.text, bytes: f.natural, offset: f.natural, elements: f.optional(f.integer, null) };
const sparse = {
  tensor: f.text,
  shape: f.list(f.natural, undefined, MAX_AXES),
  values: f.text,
  indices: f.text,
  gradient: f.optional(f.text, null),
  batches: f.natural,
};
const pair = {
  layer: f.text,
  a: f.text,
  b: f.text,
  layout: f.oneOf(LAYOUTS),
  groups: f.natural,
  rank: f.natural,
  scale: f.number,
};
const adapter = {
  pairs: f.list(f.object(pair)),
  masks: f.list(f.text),
  prompt_tokens: f.natural,
  non_trainable: f.list(f.text),
};
const chat = { template: f.text, tokens: f.mapOf(f.text) };
const textSpec = {
  max_length: f.natural,
  pad_id: f.integer,
  fields: f.mapOf(f.oneOf(TEXT_FIELDS)),
  template: f.optional(f.text, null),
  chat: f.optional(f.object(chat), null), // read, and not used: this runtime has no Jinja
  special: f.optional(f.mapOf(f.integer), null),
};
const side = f.check("pixels", (v): v is number => f.isNatural(v) && v > 0 && v <= MAX_IMAGE_SIDE);
const image = {
  input: f.text,
  size: f.list(side, 2),
  channels: f.natural,
  mean: f.list(f.number),
  std: f.list(f.number),
  resize: f.nullable(f.list(f.natural, undefined, 2)),
  resample: f.oneOf(RESAMPLES),
  channel_order: f.oneOf(CHANNEL_ORDERS),
  reduce_labels: f.optional(f.flag, null), // read, and not used: this runtime reads no masks
};
const table = { columns: f.list(f.text), mean: f.list(f.number), std: f.list(f.number) };
const generation = {
  ids: f.text,
  attention_mask: f.nullable(f.text),
  end: f.list(f.natural),
  cache: f.list(f.object(cache)),
};
const memory = { activations: f.list(f.mapOf(f.natural)), micro_batch: f.optional(f.integer, null) };

const listedFile = { sha256: f.sha256Text, bytes: f.natural, parts: f.optional(f.list(f.sha256Text), null) };

/** Reads the fields of a manifest; whether they fit one another is checked in `manifest_checks.ts`. */
export const manifest = f.object({
  format: f.text,
  version: f.integer,
  min_onnxruntime: f.text,
  base_sha256: f.sha256Text,
  files: f.mapOf(f.object(listedFile)),
  dimensions: f.mapOf(f.object({ min: f.natural, max: f.nullable(f.integer) })),
  inputs: f.list(f.object(tensor)),
  labels: f.list(f.object(label)),
  outputs: f.list(f.object(tensor)),
  parameters: f.list(f.object({ ...tensor, role: f.oneOf(ROLES) })),
  frozen: f.list(f.object(frozen)),
  buckets: f.list(f.object(bucket)),
  loss: f.record({ kind: f.text }),
  optimizer: f.record({ kind: f.text, lr: f.number, state: f.list(f.object(tensor)) }),
  programs,
  cache: f.optional(cacheEntry, null),
  task: f.optional(f.text, null),
  classes: f.optional(f.list(f.text), null),
  text: f.optional(f.object(textSpec), null),
  image: f.optional(f.object(image), null),
  table: f.optional(f.object(table), null), // read, and not used: this runtime reads no tables
  audio: f.optional(f.anyObject, null), // recordings are given as arrays
  memory: f.optional(f.object(memory), null),
  sparse: f.optional(f.list(f.object(sparse)), []),
  adapter: f.object(adapter),
  generation: f.optional(f.object(generation), null),
  provenance: f.anyObject,
});

export type Manifest = f.Read<typeof manifest>;
export type ListedFile = Manifest["files"] extends ReadonlyMap<string, infer File> ? File : never;
export type TensorSpec = Manifest["inputs"][number];
export type LabelSpec = Manifest["labels"][number];
export type ParameterSpec = Manifest["parameters"][number];
export type PairSpec = Manifest["adapter"]["pairs"][number];
export type SparseSpec = Manifest["sparse"][number];
export type FrozenSpec = Manifest["frozen"][number];
export type ImageSpec = NonNullable<Manifest["image"]>;
export type Dtype = (typeof DTYPES)[number];

/** Returns the trainable parameters: the members of buckets. */
export function trained(manifest: Manifest): readonly ParameterSpec[] {
  const members = new Set(manifest.buckets.flatMap((bucket) => bucket.members));
  return manifest.parameters.filter((spec) => members.has(spec.name));
}

/** Returns the number of elements of a tensor without symbolic dimensions. */
export function sizeOf(spec: { readonly shape: readonly (number | string)[] }): number {
  return spec.shape.reduce<number>((product, dim) => product * Number(dim), 1);
}

export function broken(message: string, context: string): BundleError {
  return new BundleError(
    "bad-manifest",
    message,
    context,
    "prepare the bundle again, or copy it again if it was edited.",
  );
}
