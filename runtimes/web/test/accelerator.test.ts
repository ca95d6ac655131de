/** Another execution provider runs what it was found to run as the CPU does, and nothing else. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import * as wasm from "onnxruntime-web/wasm";
import { type Ort, Tensor, type Tensors, Trainer } from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { BUNDLE, cut, data, ort, refused } from "./support.js";

/** Native code as the accelerator of WebAssembly: another build of the same kernels. */
const NATIVE = { ort, executionProviders: ["cpu"] };

type Session = Awaited<ReturnType<Ort["InferenceSession"]["create"]>>;
const create = ort.InferenceSession.create as (model: Uint8Array, options: object) => Promise<Session>;

/** ONNX Runtime with a fault: outputs of these names come out multiplied. `calls` collects the outputs of all runs. */
function faulty(names: RegExp, factor: number, calls: string[] = []): Ort {
  const multiplied = async (session: Session, ...[feeds, fetches]: Parameters<Session["run"]>): Promise<Tensors> => {
    calls.push(...fetches);
    const found = Object.entries((await session.run(feeds, fetches)) as Tensors);
    return Object.fromEntries(found.map(([name, value]) => [name, names.test(name) ? scaled(value, factor) : value]));
  };
  const open = async (model: Uint8Array, options: object): Promise<Session> => {
    const session = await create(model, options);
    return { run: (feeds, fetches) => multiplied(session, feeds, fetches), release: () => session.release() };
  };
  return { ...ort, InferenceSession: { create: open as Ort["InferenceSession"]["create"] } };
}

function scaled(tensor: Tensor, factor: number): Tensor {
  return new Tensor(
    "float32",
    (tensor.data as Float32Array).map((value) => value * factor),
    tensor.dims,
  );
}

async function losses(trainer: Trainer, steps = 3): Promise<number[]> {
  const [found, batch] = [[] as number[], cut(await data(), 0, 8)];
  for (let step = 0; step < steps; step++) found.push(await trainer.step(batch));
  return found;
}

describe("an accelerator", () => {
  it("that agrees runs the programs", async () => {
    const trainer = await Trainer.open(folder(BUNDLE), { ort: wasm, accelerator: NATIVE });
    const plain = await Trainer.open(folder(BUNDLE), { ort });
    const [found, expected] = [await losses(trainer), await losses(plain)];
    found.forEach((loss, i) => assert.ok(Math.abs(loss - expected[i]!) < 1e-5 * expected[i]!));
    await trainer.evaluate(cut(await data(), 0, 8));
    assert.deepEqual(
      trainer.verdicts.map(({ program, accepted }) => [program, accepted]),
      [
        ["train", true],
        ["eval", true],
      ],
    );
    assert.deepEqual(plain.verdicts, []);
    await trainer.close();
    await plain.close();
  });

  for (const [what, names, factor] of [
    ["a loss of zero", /^loss_sum$/, 0],
    ["a wrong gradient", /^gradients/, 1.02],
    ["a gradient that is not finite", /^gradients/, NaN],
  ] as const) {
    it(`with ${what} does not train`, async () => {
      const calls: string[] = [];
      const accelerator = { ort: faulty(names, factor, calls), executionProviders: ["cpu"] };
      const trainer = await Trainer.open(folder(BUNDLE), { ort, accelerator });
      const plain = await Trainer.open(folder(BUNDLE), { ort });
      assert.deepEqual(await losses(trainer), await losses(plain));
      const [{ accepted, facts }] = trainer.verdicts as [(typeof trainer.verdicts)[0]];
      assert.equal(accepted, false);
      assert.match(facts, names.source.startsWith("^loss") ? /^loss_sum: 0 instead of \d/ : /^gradients.*difference/);
      assert.equal(calls.filter((name) => name === "loss_sum").length, 1, "the CPU ran the later steps");
      await trainer.close();
      await plain.close();
    });
  }

  it("without the provider does not train", async () => {
    const trainer = await Trainer.open(folder(BUNDLE), {
      ort,
      accelerator: { executionProviders: ["no-such-provider"] },
    });
    assert.equal((await losses(trainer)).length, 3);
    assert.match(trainer.verdicts[0]!.facts, /^it failed: .*no-such-provider/);
    await trainer.close();
  });

  it("is compared for new shapes, too", async () => {
    const all = await data();
    const calls: string[] = [];
    const trainer = await Trainer.open(folder(BUNDLE), {
      ort,
      accelerator: { ort: faulty(/^$/, 1, calls), executionProviders: ["cpu"] },
    });
    for (const rows of [8, 4, 8, 2, 3]) await trainer.step(cut(all, 0, rows));
    assert.deepEqual(
      trainer.verdicts.map(({ accepted }) => accepted),
      [true],
    );
    assert.equal(calls.filter((name) => name === "loss_sum").length, 5);
    await trainer.close();
  });

  it("comes in by its own option", async () => {
    // As JavaScript would pass it: the type has no such property.
    const session = { executionProviders: ["webgpu"] } as object;
    await assert.rejects(Trainer.open(folder(BUNDLE), { ort, session }), refused("bad-setting"));
    const accelerator = { executionProviders: [] };
    await assert.rejects(Trainer.open(folder(BUNDLE), { ort, accelerator }), refused("bad-setting"));
  });
});
