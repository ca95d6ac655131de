/** Delta-coded indices: the bytes are Python's, and what is no coding is refused. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BundleError, Tensor, type TensorFile, type Tensors, readTensors, tensorBytes } from "edgepeft-runtime";
import { refused } from "./support.js";

interface IndexCoding {
  deltaCoded(tensors: Tensors, metadata: Record<string, string>): [Tensors, Record<string, string>];
}
const { deltaCoded } = (await import(new URL("../../dist/files/index_coding.js", import.meta.url).href)) as IndexCoding;

const LAST = 2 ** 31 - 1;

function hex(tensor: Tensor): string {
  return Buffer.from(tensor.data as Uint8Array).toString("hex");
}

function int32(...numbers: number[]): Tensor {
  return new Tensor("int32", Int32Array.from(numbers), [numbers.length]);
}

/** A file that says its tensor `a` is delta-coded. */
async function read(bytes: Uint8Array, names: unknown = ["a"], dims = [bytes.length]): Promise<TensorFile> {
  const tensors = { a: new Tensor("uint8", bytes, dims), b: new Tensor("float32", Float32Array.of(1), [1]) };
  const delta_indices = typeof names === "string" ? names : JSON.stringify(names);
  return readTensors((await tensorBytes(tensors, { delta_indices }, true)).bytes, "The file", BundleError, true);
}

const CODES: readonly (readonly [string, readonly number[]])[] = [
  ["", []],
  ["00", [0]],
  ["00000000", [0, 1, 2, 3]],
  ["0300", [3, 4]],
  ["7f8001ff7f808001", [127, 256, 16640, 33025]],
  ["02b964", [2, 12860]],
  ["ffffffff07", [LAST]],
  ["feffffff0700", [LAST - 1, LAST]],
];

const DAMAGED: readonly (readonly [string, string, unknown?, number[]?])[] = [
  ["cut short", "80"],
  ["cut short behind whole ones", "0505ffff"],
  ["of six bytes", "808080808001"],
  ["that take more bytes than they need", "058000"],
  ["that lead beyond int32 at once", "8080808008"],
  ["that lead beyond what 32 bits hold", "ffffffff7f"],
  ["that lead beyond int32 at last", "ffffffff0700"],
  ["of a tensor that is not there", "01", ["c"]],
  ["of floats", "01", ["b"]],
  ["named twice", "01", ["a", "a"]],
  ["of two axes", "0102", ["a"], [1, 2]],
  ["named by no list", "01", { a: 1 }],
  ["named by a number", "01", [1]],
  ["named by no JSON", "01", "a"],
];

describe("delta-coded indices", () => {
  for (const [code, indices] of CODES) {
    it(`of [${indices.join(", ")}] are written and read`, async () => {
      const [tensors, metadata] = deltaCoded({ a: int32(...indices) }, { note: "a note" });
      assert.deepEqual([tensors["a"]!.type, hex(tensors["a"]!)], ["uint8", code]);
      assert.deepEqual(metadata, { note: "a note", delta_indices: '["a"]' });
      const found = await read(Uint8Array.from(Buffer.from(code, "hex")));
      assert.deepEqual(found.tensors["a"]!.data, Int32Array.from(indices));
      assert.deepEqual([found.tensors["a"]!.dims, found.metadata.has("delta_indices")], [[indices.length], false]);
    });
  }

  for (const [what, code, names, dims] of DAMAGED) {
    it(`${what} are refused`, () =>
      assert.rejects(read(Uint8Array.from(Buffer.from(code, "hex")), names, dims), refused("bad-delta-indices")));
  }

  it("are not made of what is not picked indices", () => {
    const plain = {
      unpicked: int32(-1, -1),
      descending: int32(5, 4),
      twice: int32(4, 4),
      matrix: new Tensor("int32", Int32Array.of(1, 2), [1, 2]),
      long: new Tensor("int64", BigInt64Array.of(1n, 2n), [2]),
    };
    const metadata = { note: "a note" };
    assert.deepEqual(deltaCoded(plain, metadata), [plain, metadata]);
  });
});
