/** Tensor files: safetensors, checked on reading, with an embedded digest where asked (section 4 of the SPEC). */

import type { ErrorClass } from "../errors.js";
import * as f from "./fields.js";
import { deltaDecoded } from "./index_coding.js";
import { MAX_AXES, elements } from "./shapes.js";
import { joined, sha256 } from "./sha256.js";
import { quoted } from "../shown.js";
import { type Tensor, type Tensors, bytesOf, itemSize, tensorOf } from "./tensors.js";

export const MAX_HEADER = 2 ** 23;
const DIGEST_LENGTH = 64;
const NO_DIGEST = "0".repeat(DIGEST_LENGTH);

/** In the order of the official library, which puts the widest dtype first. */
const DTYPES: Readonly<Record<string, string>> = {
  BOOL: "bool",
  U8: "uint8",
  I8: "int8",
  I16: "int16",
  U16: "uint16",
  F16: "float16",
  I32: "int32",
  U32: "uint32",
  F32: "float32",
  F64: "float64",
  I64: "int64",
  U64: "uint64",
};
const CODES = new Map(Object.entries(DTYPES).map(([code, name]) => [name, code]));
const ORDER = Object.values(DTYPES);

/** Tensors by name, in the order of the file, and strings about them. */
export interface TensorFile {
  readonly tensors: Tensors;
  readonly metadata: ReadonlyMap<string, string>;
}

const entry = f.object({
  dtype: f.oneOf([...Object.keys(DTYPES), "BF16"]),
  shape: f.list(f.natural, undefined, MAX_AXES),
  data_offsets: f.list(f.natural, 2),
});
type Entry = f.Read<typeof entry>;

class Damage extends Error {
  constructor(
    readonly code: string,
    what: string,
  ) {
    super(what);
  }
}

/**
 * Reads a tensor file and checks all of it. `bfloat16` becomes `float32`, without loss; delta-coded indices
 * become `int32`.
 *
 * @param source the file, as the subject of the message: "The checkpoint ...".
 * @param requireDigest whether to refuse a file without a digest; one that is present is checked in any case.
 */
export async function readTensors(
  bytes: Uint8Array,
  source: string,
  error: ErrorClass,
  requireDigest = false,
): Promise<TensorFile> {
  try {
    return await parse(bytes, requireDigest);
  } catch (failure) {
    const damage = failure instanceof f.Wrong ? new Damage("tensor-file-header", failure.message) : failure;
    if (!(damage instanceof Damage)) throw failure;
    const hint = "fetch or write the file again; the copy was cut short or changed on the way.";
    throw new error(damage.code, `${source} is damaged or of another format.`, damage.message, hint);
  }
}

/** Returns the bytes of a tensor file, and their SHA-256 or, if requested, the embedded digest. */
export async function tensorBytes(
  tensors: Tensors,
  metadata: Readonly<Record<string, string>> = {},
  withDigest = false,
): Promise<{ bytes: Uint8Array<ArrayBuffer>; digest: string }> {
  const named = Object.entries(tensors).sort(([a, left], [b, right]) => {
    return ORDER.indexOf(right.type) - ORDER.indexOf(left.type) || (a < b ? -1 : 1);
  });
  let end = 0;
  const entries = named.map(([name, tensor]): [string, Entry] => {
    const start = end;
    end += bytesOf(tensor).length;
    return [name, { dtype: CODES.get(tensor.type)!, shape: tensor.dims, data_offsets: [start, end] }];
  });
  const about = { ...metadata, ...(withDigest ? { digest: NO_DIGEST } : {}) };
  const header = Object.fromEntries([
    ...(Object.keys(about).length > 0 ? [["__metadata__", about]] : []),
    ...entries,
  ]) as unknown;
  const text = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(head.length - 8), true);
  head.set(text, 8);
  const bytes = joined([head, ...named.map(([, tensor]) => bytesOf(tensor))]);
  const digest = await sha256(bytes);
  if (withDigest) {
    bytes.set(new TextEncoder().encode(digest), find(head, `"digest":"${NO_DIGEST}"`) + '"digest":"'.length);
  }
  return { bytes, digest };
}

async function parse(bytes: Uint8Array, requireDigest: boolean): Promise<TensorFile> {
  if (bytes.length < 8) throw new Damage("truncated-tensor-file", `it has ${bytes.length} bytes.`);
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (length > MAX_HEADER)
    throw new Damage("tensor-file-header", `its header claims ${length} bytes; at most ${MAX_HEADER} are allowed.`);
  if (8 + length > bytes.length) {
    throw new Damage("truncated-tensor-file", `its header claims ${length} bytes; the file has ${bytes.length}.`);
  }
  const head = bytes.subarray(8, 8 + length);
  if (head[0] !== "{".charCodeAt(0)) throw new Damage("tensor-file-header", "its header is not a JSON object.");
  const header = new Map(Object.entries(f.anyObject(f.parseJson(head, "header"), "header")));
  const metadata = f.optional(f.mapOf(f.text), new Map<string, string>())(header.get("__metadata__"), "__metadata__");
  header.delete("__metadata__");
  await checkDigest(bytes, head, metadata.get("digest"), requireDigest);
  const tensors = parts(bytes.subarray(8 + length), header);
  try {
    return deltaDecoded(tensors, metadata);
  } catch (failure) {
    throw failure instanceof f.Wrong ? new Damage("bad-delta-indices", failure.message) : failure;
  }
}

async function checkDigest(
  bytes: Uint8Array,
  head: Uint8Array,
  digest: string | undefined,
  required: boolean,
): Promise<void> {
  if (digest === undefined) {
    if (required) throw new Damage("no-digest", "it has no digest, so it is unknown whether it is complete.");
    return;
  }
  const position = /^[0-9a-f]{64}$/.test(digest) ? find(head, digest) : -1;
  if (position < 0) throw new Damage("wrong-digest", `its digest is not ${DIGEST_LENGTH} hexadecimal digits.`);
  const start = 8 + position;
  const computed = await sha256(
    bytes.subarray(0, start),
    new TextEncoder().encode(NO_DIGEST),
    bytes.subarray(start + DIGEST_LENGTH),
  );
  if (computed !== digest)
    throw new Damage("wrong-digest", `its digest is ${digest}, but that of its content is ${computed}.`);
}

/** Returns the offset of an ASCII text in bytes; -1 if it does not occur. */
function find(bytes: Uint8Array, text: string): number {
  // latin1 has one character per byte, so that positions agree.
  return new TextDecoder("latin1").decode(bytes).indexOf(text);
}

function parts(data: Uint8Array, header: ReadonlyMap<string, unknown>): Tensors {
  const entries = [...header].map(([name, value]) => ({ name, ...entry(value, `tensor ${quoted(name)}`) }));
  entries.sort((a, b) => a.data_offsets[0]! - b.data_offsets[0]! || a.data_offsets[1]! - b.data_offsets[1]!);
  let end = 0;
  for (const { name, dtype, shape, data_offsets } of entries) {
    const [start, stop] = data_offsets as [number, number];
    if (start !== end) {
      const problem = start < end ? "overlaps the previous tensor" : "leaves a gap after the previous tensor";
      throw new Damage(
        "tensor-file-layout",
        `tensor ${quoted(name)} at byte ${start} ${problem}, which ends at ${end}.`,
      );
    }
    const itemsize = dtype === "BF16" ? 2 : itemSize(DTYPES[dtype]!);
    const count = elements(shape, Math.max(stop - start, 0) / itemsize);
    if (count === null || count * itemsize !== stop - start) {
      const facts = `dtype ${dtype} and shape ${quoted(shape)} does not take the ${stop - start} bytes of its range.`;
      throw new Damage("tensor-file-layout", `tensor ${quoted(name)} of ${facts}`);
    }
    end = stop;
  }
  if (end !== data.length)
    throw new Damage(
      "truncated-tensor-file",
      `its header describes ${end} bytes of data; the file has ${data.length}.`,
    );
  return Object.fromEntries(entries.map((e) => [e.name, read(e, data.subarray(e.data_offsets[0], e.data_offsets[1]))]));
}

function read({ name, dtype, shape }: Entry & { name: string }, bytes: Uint8Array): Tensor {
  if (dtype === "BOOL" && bytes.some((byte) => byte > 1)) {
    throw new Damage("tensor-file-layout", `tensor ${quoted(name)} of dtype BOOL contains a byte other than 0 and 1.`);
  }
  if (dtype !== "BF16") return tensorOf(DTYPES[dtype]!, shape, bytes);
  // The bits of a bfloat16 are the upper half of a float32's.
  const wide = new Uint8Array(2 * bytes.length);
  bytes.forEach((byte, i) => (wide[(i >> 1) * 4 + 2 + (i & 1)] = byte));
  return tensorOf("float32", shape, wide);
}
