/** What a user relies on while training: it learns, it ends when told, and nothing bad is taken over. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Batch, type Dataset, Trainer } from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { BUNDLE, cut, data, ort, refused } from "./support.js";

function open(): Promise<Trainer> {
  return Trainer.open(folder(BUNDLE), { ort });
}

describe("fit", () => {
  it("learns, and keeps the best adapter by held-out loss", async () => {
    const [all, trainer] = [await data(), await open()];
    const heldOut = cut(all, 30, 40);
    const before = await trainer.evaluate(heldOut);
    const report = await trainer.fit(cut(all, 0, 30), { epochs: 6, validate: heldOut });
    const after = await trainer.evaluate(heldOut);
    assert.ok(after.loss < 0.8 * before.loss, `${before.loss} to ${after.loss}`);
    assert.equal(after.loss, report.best!.heldOutLoss);
    assert.equal(report.best!.heldOutLoss, Math.min(...report.history.map((line) => line.heldOutLoss!)));
    assert.equal(report.steps, 24);
    await trainer.close();
  });

  it("warms up and falls as told, step by step", async () => {
    const [all, trainer] = [await data(), await open()];
    const rates: number[] = [];
    const progress = ({ lr }: { lr: number }): void => void rates.push(lr);
    await trainer.fit(all, { batchSize: 8, epochs: 2, lr: 1, schedule: "linear", warmup: { fraction: 0.2 }, progress });
    assert.deepEqual(rates, [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]);
    await trainer.close();
  });

  it("ends after so many steps, or epochs without a better loss", async () => {
    const [all, trainer] = [await data(), await open()];
    const short = await trainer.fit(all, { epochs: 9, maxSteps: 7 });
    assert.deepEqual([short.stopped, short.steps], ["max_steps", 7]);
    // With a rate of 0 nothing ever gets better.
    const options = { epochs: 9, lr: 0, patience: 2, validate: cut(all, 30, 40) };
    const idle = await trainer.fit(cut(all, 0, 30), options);
    assert.deepEqual([idle.stopped, idle.history.length], ["patience", 3]);
    await trainer.close();
  });

  it("takes data sets, lists of batches, and functions that give them, with the same result", async () => {
    const all = await data();
    const batches: Batch[] = [0, 8, 16, 24, 32].map((start) => cut(all, start, start + 8));
    const set: Dataset = { length: 40, batch: (rows) => Promise.resolve(cut(all, rows[0]!, rows.at(-1)! + 1)) };
    const losses: (number | null)[] = [];
    for (const given of [all, batches, set, (): readonly Batch[] => batches]) {
      const trainer = await open();
      losses.push((await trainer.fit(given, { shuffle: false, epochs: 1 })).history[0]!.loss);
      await trainer.close();
    }
    assert.equal(new Set(losses).size, 1);
  });

  it("refuses settings and data that make no sense", async () => {
    const [all, trainer] = [await data(), await open()];
    const stream = (): Batch[] => [cut(all, 0, 8)];
    await assert.rejects(trainer.fit(all, { epochs: 0 }), refused("bad-setting"));
    await assert.rejects(trainer.fit(all, { patience: 1 }), refused("bad-setting"));
    await assert.rejects(trainer.fit(all, { warmup: { fraction: 2 } }), refused("bad-warmup"));
    await assert.rejects(trainer.fit(all, { schedule: "step" as "linear" }), refused("unknown-schedule"));
    await assert.rejects(trainer.fit(stream, { schedule: "linear" }), refused("unknown-number-of-steps"));
    await assert.rejects(trainer.fit([]), refused("no-data"));
    await assert.rejects(trainer.fit({ ...all, labels: [1, 2] }), refused("different-lengths"));
    await assert.rejects(Trainer.open(folder(BUNDLE), { ort, seed: -1 }), refused("bad-setting"));
    await assert.rejects(trainer.save(), refused("no-state"));
    await trainer.close();
  });
});

describe("step", () => {
  it("takes nothing over where the loss is not finite, and goes on afterwards", async () => {
    const [all, trainer] = [await data(), await open()];
    const batch = cut(all, 0, 8);
    const wanted = await trainer.step(batch, 0);
    const huge = { ...batch, image: { data: new Float32Array(8 * 64).fill(3e38), dims: [8, 1, 8, 8] } };
    await assert.rejects(trainer.step(huge), refused("diverged"));
    assert.equal(trainer.steps, 1);
    assert.equal(await trainer.step(batch, 0), wanted);
    await assert.rejects(trainer.step(batch, Number.NaN), refused("bad-setting"));
    await trainer.close();
  });

  it("refuses a step in which no label counts", async () => {
    const [all, trainer] = [await data(), await open()];
    await assert.rejects(trainer.step({ ...cut(all, 0, 2), labels: [-100, -100] }), refused("no-label-counts"));
    await assert.rejects(trainer.evaluate({ ...cut(all, 0, 2), labels: [-100, -100] }), refused("no-data"));
    await trainer.close();
  });

  it("waits for nobody: a second call that trains is refused, a prediction meanwhile is not", async () => {
    const [all, trainer] = [await data(), await open()];
    const training = trainer.fit(all, { epochs: 2 });
    await assert.rejects(trainer.step(cut(all, 0, 2)), refused("busy"));
    const [{ output }] = await Promise.all([trainer.predict(cut(all, 0, 4)), training]);
    assert.equal(output!.dims[0], 4);
    assert.equal(trainer.steps, 10);
    await trainer.close();
  });
});

describe("predict", () => {
  it("takes another adapter for one call: the model as it was before", async () => {
    const [all, trainer] = [await data(), await open()];
    const before = await trainer.predict(cut(all, 0, 4));
    await trainer.fit(all, { epochs: 2 });
    const adapter = await trainer.bundle.adapter();
    const after = await trainer.predict(cut(all, 0, 4));
    assert.deepEqual((await trainer.predict(cut(all, 0, 4), { adapter })).output!.data, before.output!.data);
    assert.notDeepEqual(after.output!.data, before.output!.data);
    const update = await trainer.saveUpdate();
    assert.deepEqual((await trainer.predict(cut(all, 0, 4), { adapter: update })).output!.data, after.output!.data);
    await trainer.close();
  });
});
