/** Sources of batches: arrays, custom data sets, lists of batches, and functions that return batches. */

import type { Batch } from "./batch.js";
import { DataError, StateError } from "../errors.js";
import { Generator } from "./random.js";
import { type ArrayLike, type Tensor, asTensor, bytesOf, take } from "../files/tensors.js";

/** Examples by index, which can be shuffled. */
export interface Dataset {
  readonly length: number;
  /** Returns the examples of the given indices, as arrays by name. */
  batch(rows: readonly number[]): Batch | Promise<Batch>;
  /** Returns a text that differs for other data of the same length. */
  fingerprint?(): string;
}

export type Batches = Iterable<Batch> | AsyncIterable<Batch>;

/** A data set, arrays by name, batches, or a function from the epoch (0, 1, ...) to batches. */
export type Data = Dataset | Readonly<Record<string, ArrayLike>> | readonly Batch[] | ((epoch: number) => Batches);

/** A data set of arrays whose first axis counts the examples. */
export class Arrays implements Dataset {
  readonly length: number;
  private readonly tensors: readonly (readonly [string, Tensor])[];

  constructor(arrays: Readonly<Record<string, ArrayLike>>) {
    this.tensors = Object.entries(arrays).map(([name, array]) => [name, asTensor(array, name)]);
    const lengths = this.tensors.map(([, tensor]) => tensor.dims[0] ?? 0);
    if (new Set(lengths).size > 1) {
      const context = this.tensors.map(([name], i) => `${name}: ${lengths[i]}`).join(", ");
      const hint = "the first axis of every array counts the examples.";
      throw new DataError("different-lengths", "The arrays of a data set must have one length.", context, hint);
    }
    this.length = lengths[0] ?? 0;
  }

  batch(rows: readonly number[]): Batch {
    return Object.fromEntries(this.tensors.map(([name, tensor]) => [name, take(tensor, rows)]));
  }

  /** Returns a checksum over dtypes, shapes and some of the rows, equal in every runtime. */
  fingerprint(): string {
    const count = Math.min(this.length, 64);
    const step = (this.length - 1) / Math.max(count - 1, 1);
    const rows = Array.from({ length: count }, (_, i) => (i === count - 1 ? this.length - 1 : Math.floor(i * step)));
    if (count === 1) rows[0] = 0;
    let checksum = 0;
    for (const [name, tensor] of [...this.tensors].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const shape = `(${tensor.dims.join(", ")}${tensor.dims.length === 1 ? "," : ""})`;
      checksum = crc32(new TextEncoder().encode(`${name} ${tensor.type} ${shape}`), checksum);
      checksum = crc32(bytesOf(take(tensor, rows)), checksum);
    }
    return checksum.toString(16).padStart(8, "0");
  }
}

/** Batches, epoch by epoch, the same each time they are read; `null` stands for unknown values. */
export interface Source {
  readonly examples: number | null;
  readonly count: number | null;
  readonly fingerprint: string | null;
  /** Returns the batches of an epoch (counted from 0), without the first `skip`. */
  batches(epoch: number, skip?: number): AsyncGenerator<Batch>;
}

/**
 * Returns batches of any kind of data. Ready-made batches keep their size and order.
 *
 * @param batchSize examples in a batch; the last one of an epoch may be smaller.
 * @param shuffleSeed shuffles a data set in each epoch; `null` keeps its order.
 */
export function sourceOf(data: Data, batchSize: number, shuffleSeed: number | null = null): Source {
  if (typeof data === "function") return stream(data, null);
  if (Array.isArray(data)) return stream(() => data as readonly Batch[], data.length);
  const isSet = typeof (data as Dataset).batch === "function";
  return rows(
    isSet ? (data as Dataset) : new Arrays(data as Readonly<Record<string, ArrayLike>>),
    batchSize,
    shuffleSeed,
  );
}

/** Mini-batches of a data set, in an order that depends on the seed and the epoch alone. */
function rows(dataset: Dataset, batchSize: number, seed: number | null): Source {
  const { length } = dataset;
  if (length === 0)
    throw new DataError("no-data", "The data set is empty.", "the data contains no examples.", "pass at least one.");
  return {
    examples: length,
    count: Math.ceil(length / batchSize),
    fingerprint: dataset.fingerprint?.() ?? null,
    async *batches(epoch, skip = 0) {
      const order =
        seed === null ? Array.from({ length }, (_, i) => i) : new Generator([seed, epoch]).permutation(length);
      for (let start = skip * batchSize; start < length; start += batchSize) {
        yield await dataset.batch(order.slice(start, start + batchSize));
      }
    },
  };
}

function stream(data: (epoch: number) => Batches, count: number | null): Source {
  return {
    examples: null,
    count,
    fingerprint: null,
    async *batches(epoch, skip = 0) {
      let count = 0;
      for await (const batch of data(epoch)) if (count++ >= skip) yield batch;
      if (count < skip) {
        const context = `epoch ${epoch + 1}: ${skip} used, ${count} in the data`;
        const hint = "resume with the data that the run was started with.";
        throw new StateError(
          "data-changed",
          "The data has fewer batches than the run has already used.",
          context,
          hint,
        );
      }
    },
  };
}

const TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  for (let i = 0; i < 8; i++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes: Uint8Array, start: number): number {
  return ~bytes.reduce((crc, byte) => TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8), ~start) >>> 0;
}
