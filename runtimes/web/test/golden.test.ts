/** The golden bundle: this runtime reproduces what PyTorch made of it, on every package of ONNX Runtime. */

import assert from "node:assert/strict";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type BundleFiles, type Ort, Trainer, heldFiles } from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { BUNDLE, PACKAGES, cut, data, expected, near } from "./support.js";

async function reproduces(files: BundleFiles, ort: Ort): Promise<void> {
  const [wanted, all] = [await expected(), await data()];
  const trainer = await Trainer.open(files, { ort });
  for (const [i, [start, stop]] of wanted.batches.entries()) {
    const loss = await trainer.step(cut(all, start, stop));
    assert.ok(near(loss, wanted.losses[i]!, wanted.relative_tolerance), `step ${i}: ${loss}, not ${wanted.losses[i]}`);
  }
  const evaluation = await trainer.evaluate(cut(all, ...wanted.evaluate));
  assert.ok(near(evaluation.loss, wanted.evaluation.loss), `evaluation: ${evaluation.loss}`);
  assert.equal(evaluation.accuracy, wanted.evaluation.accuracy);
  const { output } = await trainer.predict(cut(all, ...wanted.predict), { batchSize: 3 });
  const logits = wanted.outputs["output"]!.flat();
  assert.deepEqual(output!.dims, [4, 3]);
  logits.forEach((logit, i) => assert.ok(Math.abs(Number(output!.data[i]) - logit) < 1e-4, `logit ${i}`));
  await trainer.close();
}

describe("the golden bundle", () => {
  for (const [name, ort] of PACKAGES) {
    it(`gives PyTorch's losses, evaluation and outputs on ${name}`, async () => {
      const names = await readdir(BUNDLE);
      const bytes = await Promise.all(names.map(async (file) => new Uint8Array(await readFile(join(BUNDLE, file)))));
      await reproduces(heldFiles(new Map(names.map((file, i) => [file, bytes[i]!]))), ort);
    });
  }

  it("gives them too where ONNX Runtime maps the weights of a folder", async () => {
    await reproduces(folder(BUNDLE), PACKAGES[0]![1]);
  });

  it("gives the same steps where each batch comes in pieces, some without a label that counts", async () => {
    const [wanted, all] = [await expected(), await data()];
    const trainer = await Trainer.open(folder(BUNDLE), { ort: PACKAGES[0]![1] });
    for (const [i, [start, stop]] of wanted.batches.entries()) {
      const firsts = Array.from({ length: Math.ceil((stop - start) / 2) }, (_, piece) => start + 2 * piece);
      const loss = await trainer.step(firsts.map((first) => cut(all, first, Math.min(first + 2, stop))));
      assert.ok(near(loss, wanted.losses[i]!), `step ${i}: ${loss}`);
    }
    await trainer.close();
  });
});
