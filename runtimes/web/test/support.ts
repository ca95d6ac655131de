/** What the tests share: the golden bundle, and two packages of ONNX Runtime. */

import { cp, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as native from "onnxruntime-node";
import * as wasm from "onnxruntime-web/wasm";
import { type Batch, DataError, type EdgepeftError, type Ort, type Tensors, readTensors } from "edgepeft-runtime";

/** The root of the repository, seen from `build/test`. */
const ROOT = new URL("../../../../", import.meta.url).pathname;
const GOLDEN = join(ROOT, "tests/golden");
export const BUNDLE = join(GOLDEN, "bundle");

wasm.env.wasm.numThreads = 1;

/** Native code, and the WebAssembly that browsers run. */
export const PACKAGES: readonly (readonly [string, Ort])[] = [
  ["onnxruntime-node", native],
  ["onnxruntime-web", wasm],
];
export const ort: Ort = native;

export interface Expected {
  readonly relative_tolerance: number;
  readonly batches: readonly (readonly [number, number])[];
  readonly losses: readonly number[];
  readonly evaluate: readonly [number, number];
  readonly evaluation: { readonly loss: number; readonly accuracy: number };
  readonly predict: readonly [number, number];
  readonly outputs: Readonly<Record<string, readonly (readonly number[])[]>>;
}

export async function expected(): Promise<Expected> {
  return JSON.parse(await readFile(join(GOLDEN, "expected.json"), "utf8")) as Expected;
}

/** The golden data: `image` [40, 1, 8, 8] and `labels` [40]. */
export async function data(): Promise<Tensors> {
  return tensorsIn(join(GOLDEN, "data.safetensors"));
}

export async function tensorsIn(path: string): Promise<Tensors> {
  return (await readTensors(await readFile(path), path, DataError)).tensors;
}

/** Rows `start` to `stop` (exclusive) of each tensor. */
export function cut(tensors: Tensors, start: number, stop: number): Batch {
  const rows = Object.entries(tensors).map(([name, tensor]) => {
    const inner = tensor.dims.slice(1);
    const width = inner.reduce((product, dim) => product * dim, 1);
    const numbers = tensor.data as Float32Array;
    return [
      name,
      { data: numbers.slice(start * width, stop * width), dims: [stop - start, ...inner], type: tensor.type },
    ];
  });
  return Object.fromEntries(rows) as Batch;
}

/** Whether two numbers are as near as the golden losses have to be. */
export function near(found: number, wanted: number, tolerance = 1e-5): boolean {
  return Math.abs(found - wanted) <= tolerance * Math.abs(wanted);
}

/** For `assert.rejects` and `assert.throws`: an error of this code. */
export function refused(code: string): (failure: unknown) => boolean {
  return (failure) => {
    const found = (failure as EdgepeftError).code;
    if (found !== code) throw new Error(`expected ${code}, found ${String(failure)}`, { cause: failure });
    return true;
  };
}

/** Runs `work` in a folder of its own, which is then removed. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "edgepeft-"));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** A copy of the golden bundle below a folder, to be damaged. */
export async function copyOfBundle(folder: string): Promise<string> {
  await cp(BUNDLE, join(folder, "bundle"), { recursive: true });
  return join(folder, "bundle");
}
