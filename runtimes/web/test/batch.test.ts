/** A batch that does not fit is refused before any graph sees it. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { type Batch, type EdgepeftError, Trainer } from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { BUNDLE, ort, refused } from "./support.js";

const IMAGE = { data: new Float32Array(2 * 64), dims: [2, 1, 8, 8] };
const image = (data: Float32Array | Int32Array, dims: number[]): Batch => ({ image: { data, dims }, labels: [0, 1] });

const REFUSED: readonly (readonly [string, string, Batch])[] = [
  ["a missing label", "missing-input", { image: IMAGE }],
  ["an unknown name", "unknown-input", { image: IMAGE, labels: [0, 1], more: [0] }],
  ["whole numbers for an image", "wrong-dtype", image(new Int32Array(128), [2, 1, 8, 8])],
  ["fractions for labels", "wrong-dtype", { image: IMAGE, labels: [0, 0.5] }],
  ["a text for labels", "wrong-dtype", { image: IMAGE, labels: "01" as unknown as number[] }],
  ["a missing axis", "wrong-shape", image(new Float32Array(128), [2, 8, 8])],
  ["another height", "wrong-shape", image(new Float32Array(144), [2, 1, 9, 8])],
  ["labels of another length", "wrong-shape", { image: IMAGE, labels: [0, 1, 2] }],
  ["a shape that its data does not fill", "wrong-dtype", image(new Float32Array(100), [2, 1, 8, 8])],
  ["no examples", "empty-batch", { image: { data: new Float32Array(0), dims: [0, 1, 8, 8] }, labels: [] }],
  ["NaN", "not-finite", image(new Float32Array(128).fill(Number.NaN), [2, 1, 8, 8])],
  ["a label above the classes", "label-out-of-range", { image: IMAGE, labels: [0, 3] }],
  ["a label below 0", "label-out-of-range", { image: IMAGE, labels: [-1, 0] }],
];

describe("a batch", () => {
  let trainer: Trainer;
  before(async () => {
    trainer = await Trainer.open(folder(BUNDLE), { ort });
  });
  after(() => trainer.close());

  for (const [what, code, batch] of REFUSED) {
    it(`with ${what} is refused`, async () => {
      await assert.rejects(trainer.step(batch), refused(code));
      assert.equal(trainer.steps, 0);
    });
  }

  it("may hold labels of any whole numbers and images of wider floats", async () => {
    const labels = [[0, 1], Int32Array.of(0, 1), Uint8Array.of(0, 1), BigInt64Array.of(0n, 1n)];
    const losses = await Promise.all(
      labels.map(async (labels) => (await trainer.evaluate({ image: IMAGE, labels })).loss),
    );
    assert.equal(new Set(losses).size, 1);
    const wide = { data: new Float64Array(128), dims: [2, 1, 8, 8] };
    assert.equal((await trainer.evaluate({ image: wide, labels: [0, 1] })).loss, losses[0]);
  });

  it("is refused with what was expected, what was found, and what to do", async () => {
    await assert.rejects(trainer.step({ image: IMAGE, labels: [0, 3] }), (failure: EdgepeftError) => {
      assert.equal(
        failure.render(),
        "error: label-out-of-range\n× labels contains a class index that is out of range.\n" +
          "╰─> expected 0 to 2, or -100 to ignore a label; found 3 at [1]\n" +
          "hint: number the classes from 0, as the bundle does.",
      );
      return true;
    });
  });
});
