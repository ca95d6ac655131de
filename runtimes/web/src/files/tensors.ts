/** Tensors of onnxruntime-common: made from arrays or bytes, cut into rows, joined. */

import { Tensor } from "onnxruntime-common";
import { BatchError } from "../errors.js";

export { Tensor };
export type Tensors = Readonly<Record<string, Tensor>>;
export type Numbers = Exclude<Tensor.DataType, string[]>;

/** Numbers of one axis, or numbers and their shape; an ONNX Runtime tensor is one. */
export type ArrayLike =
  | readonly number[]
  | Numbers
  | { readonly data: readonly number[] | Tensor.DataType; readonly dims: readonly number[]; readonly type?: string };

type Constructor = {
  new (buffer: ArrayBuffer, offset?: number, length?: number): Numbers;
  readonly BYTES_PER_ELEMENT: number;
};

/** Only newer JavaScript engines have an array of half floats; elsewhere ONNX Runtime accepts their bits. */
const HALF = ((globalThis as Record<string, unknown>)["Float16Array"] ?? Uint16Array) as Constructor;

export const ARRAYS: Readonly<Record<string, Constructor>> = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  float16: HALF,
  int32: Int32Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
};

/** Returns the bytes of one element of a dtype. */
export function itemSize(dtype: string): number {
  return ARRAYS[dtype]!.BYTES_PER_ELEMENT;
}

/** Creates a tensor over a copy of `bytes`, little-endian; `null` makes one of zeros. `slice` of a Node `Buffer` is no copy. */
export function tensorOf(dtype: string, shape: readonly number[], bytes: Uint8Array | null = null): Tensor {
  const size = shape.reduce((product, dim) => product * dim, itemSize(dtype));
  const buffer = bytes === null ? new ArrayBuffer(size) : new Uint8Array(bytes).buffer;
  return new Tensor(dtype as "float32", new ARRAYS[dtype]!(buffer) as Float32Array, shape);
}

/** Creates a tensor over `bytes` themselves, which must not change; they are copied only if they are not aligned. */
export function tensorOver(dtype: string, shape: readonly number[], bytes: Uint8Array): Tensor {
  const { buffer, byteOffset, byteLength } = bytes;
  const [array, width] = [ARRAYS[dtype]!, itemSize(dtype)];
  if (byteOffset % width !== 0) return tensorOf(dtype, shape, bytes);
  const numbers = new array(buffer as ArrayBuffer, byteOffset, byteLength / width);
  return new Tensor(dtype as "float32", numbers as Float32Array, shape);
}

/** Returns the numbers of a tensor; this runtime makes no tensors of text. */
export function numbersOf(tensor: Tensor): Numbers {
  return tensor.data as Numbers;
}

/** Returns the memory of a tensor. */
export function bytesOf(tensor: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = numbersOf(tensor);
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
}

/** Copies tensors, so that the originals may change. */
export function copies(tensors: Tensors): Tensors {
  const copied = Object.entries(tensors).map(([name, tensor]) => {
    return [name, tensorOf(tensor.type, tensor.dims, bytesOf(tensor))] as const;
  });
  return Object.fromEntries(copied);
}

/**
 * Creates a tensor from a value that a user passed. Plain numbers become int64 where all are whole, else float64, as in numpy.
 *
 * @throws BatchError it is not an array of numbers.
 */
export function asTensor(value: ArrayLike, name: string): Tensor {
  try {
    const { data, dims, type } = "dims" in value ? value : { data: value, dims: [value.length], type: undefined };
    if (!Array.isArray(data)) {
      const numbers = data as Float32Array;
      return type === undefined ? new Tensor(numbers, dims) : new Tensor(type as "float32", numbers, dims);
    }
    const plain = data as unknown as readonly number[];
    return plain.every(Number.isSafeInteger)
      ? new Tensor("int64", BigInt64Array.from(plain, BigInt), dims)
      : new Tensor("float64", Float64Array.from(plain), dims);
  } catch (failure) {
    const hint = "pass a typed array, numbers, or { data, dims }; tokenize text and decode images first.";
    throw new BatchError("wrong-dtype", `${name} is no array of numbers.`, String(failure), hint);
  }
}

/** Copies the rows of the given indices. */
export function take(tensor: Tensor, rows: readonly number[]): Tensor {
  const [count = 1, ...inner] = tensor.dims;
  const from = bytesOf(tensor);
  const width = from.length / Math.max(count, 1);
  const bytes = new Uint8Array(rows.length * width);
  rows.forEach((row, i) => bytes.set(from.subarray(row * width, (row + 1) * width), i * width));
  return tensorOf(tensor.type, [rows.length, ...inner], bytes);
}

/** Concatenates tensors along the first axis. */
export function concatenated(parts: readonly Tensor[]): Tensor {
  const [first] = parts;
  if (first === undefined || parts.length === 1) return first!;
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + bytesOf(part).length, 0));
  let length = 0;
  for (const part of parts) {
    bytes.set(bytesOf(part), length);
    length += bytesOf(part).length;
  }
  const count = parts.reduce((sum, part) => sum + (part.dims[0] ?? 1), 0);
  return tensorOf(first.type, [count, ...first.dims.slice(1)], bytes);
}

/** Returns where the first NaN or infinity is, and which; `null` if all values are finite or are whole numbers. */
export function notFinite(tensor: Tensor): string | null {
  if (!tensor.type.startsWith("float")) return null;
  const data = numbersOf(tensor) as Float32Array;
  // A half float is infinity or NaN if all bits of its exponent are ones.
  const bits = tensor.type === "float16" && (data as unknown) instanceof Uint16Array;
  const bad = bits ? (v: number): boolean => (v & 0x7c00) === 0x7c00 : (v: number): boolean => !Number.isFinite(v);
  const index = data.findIndex(bad);
  return index < 0 ? null : `at [${positionOf(tensor, index).join(", ")}]: ${bits ? "not finite" : data[index]}`;
}

/** Returns the indices, one per axis, of a position in row-major order. */
export function positionOf(tensor: Tensor, position: number): number[] {
  const indices: number[] = [];
  for (const dim of [...tensor.dims].reverse()) {
    indices.unshift(position % dim);
    position = Math.floor(position / dim);
  }
  return indices;
}
