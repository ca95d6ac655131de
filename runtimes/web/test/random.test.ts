/** The orders of the shuffling are numpy's, so that a run repeats in every runtime. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, it } from "node:test";
import { Arrays, Generator } from "edgepeft-runtime";

/** Made by `numpy.random.default_rng(seed).permutation(length)`; `checksum` is the sum of place times value. */
interface Orders {
  readonly orders: readonly { seed: number[]; permutation?: number[]; length?: number; checksum?: number }[];
}

const { orders } = JSON.parse(await readFile(new URL("../../test/orders.json", import.meta.url), "utf8")) as Orders;

describe("the generator", () => {
  for (const { seed, permutation, length, checksum } of orders) {
    it(`gives numpy's permutation of ${permutation?.length ?? length} for the seed ${seed.join(", ")}`, () => {
      const found = new Generator(seed).permutation(permutation?.length ?? length!);
      if (permutation !== undefined) assert.deepEqual(found, permutation);
      else
        assert.equal(
          found.reduce((sum, value, place) => sum + value * place, 0),
          checksum,
        );
    });
  }

  it("gives an order of nothing for nothing", () => {
    assert.deepEqual(new Generator([0]).permutation(0), []);
  });
});

describe("the fingerprint of arrays", () => {
  it("is that of the Python runtime, for few rows and for more than are looked at", () => {
    const rows = (count: number): Float32Array => Float32Array.from({ length: 2 * count }, (_, i) => i / 4);
    const arrays = (count: number): Arrays => {
      return new Arrays({
        x: { data: rows(count), dims: [count, 2] },
        labels: Array.from({ length: count }, (_, i) => i % 3),
      });
    };
    assert.deepEqual(
      [1, 2, 64, 100, 1000].map((count) => arrays(count).fingerprint()),
      FINGERPRINTS,
    );
  });
});

/** Of `Arrays({"x": arange(2 * n, dtype="float32").reshape(n, 2) / 4, "labels": arange(n) % 3}).fingerprint()`. */
const FINGERPRINTS = ["3138ae9b", "91979c62", "c9d138da", "26007212", "cd0a6ad1"];
