/** A run continues as if it had never stopped: after a save, a crash, a damaged checkpoint, a killed process. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type CallProgress, type FitOptions, type Tensors, StateError, Trainer, readTensors } from "edgepeft-runtime";
import { folder, stateFolder } from "edgepeft-runtime/node";
import { BUNDLE, copyOfBundle, cut, data, inFolder, ort, refused } from "./support.js";

const SETTINGS = { epochs: 3, batchSize: 7, accumulate: 2, schedule: "cosine", warmup: 2, saveEvery: 2 } as const;

/** Opens the golden bundle with a state folder. */
function open(state: string, seed = 3): Promise<Trainer> {
  return Trainer.open(folder(BUNDLE), { ort, seed, state: stateFolder(state), session: { intraOpNumThreads: 1 } });
}

async function fitted(trainer: Trainer, options: FitOptions = {}): Promise<Tensors> {
  const all = await data();
  await trainer.fit(cut(all, 0, 30), { ...SETTINGS, validate: cut(all, 30, 40), ...options });
  return trainer.parameters();
}

/** Trains until a step, as a process does that is then killed: what was not saved is lost. */
async function crashed(state: string, step: number): Promise<void> {
  const trainer = await open(state);
  const stop = new Error("the power went");
  const progress = (at: { step: number }): void => {
    if (at.step === step) throw stop;
  };
  await assert.rejects(fitted(trainer, { progress }), stop);
  await trainer.close();
}

function assertSame(found: Tensors, wanted: Tensors): void {
  assert.deepEqual(Object.keys(found), Object.keys(wanted));
  for (const [name, tensor] of Object.entries(wanted)) assert.deepEqual(found[name]!.data, tensor.data, name);
}

describe("a run with a state", () => {
  for (const step of [1, 2, 3, 5, 6]) {
    it(`that dies after step ${step} ends as the uninterrupted one, to the bit`, () =>
      inFolder(async (work) => {
        const whole = await open(join(work, "whole"));
        const wanted = await fitted(whole);
        await crashed(join(work, "cut"), step);
        const again = await open(join(work, "cut"));
        assert.equal(again.steps, step - (step % 2));
        assertSame(await fitted(again), wanted);
        assert.deepEqual(again.history, whole.history);
        assert.equal(again.session.run.lossBefore, whole.session.run.lossBefore);
        await Promise.all([whole.close(), again.close()]);
      }));
  }

  it("saves when it is aborted, and resumes from that very step", () =>
    inFolder(async (work) => {
      const controller = new AbortController();
      const trainer = await open(work);
      const progress = ({ step }: { step: number }): void => void (step === 3 && controller.abort());
      await assert.rejects(fitted(trainer, { saveEvery: null, progress, signal: controller.signal }), {
        name: "AbortError",
      });
      await trainer.close();
      const again = await open(work);
      assert.equal(again.steps, 3);
      await again.close();
    }));

  it("ends within a step when it is aborted, saves the steps before, and resumes to the bit", () =>
    inFolder(async (work) => {
      const whole = await open(join(work, "whole"));
      const wanted = await fitted(whole);
      const controller = new AbortController();
      const trainer = await open(join(work, "cut"));
      const seen: string[] = [];
      const callProgress = ({ step, done, calls }: CallProgress): void => {
        seen.push(`${step}: ${done} of ${calls}`);
        if (step === 2 && done === 1) controller.abort();
      };
      const all = await data(); // read before, so that the first call is the one that trains
      const options = { ...SETTINGS, validate: cut(all, 30, 40), saveEvery: null };
      const stopped = trainer.fit(cut(all, 0, 30), { ...options, callProgress, signal: controller.signal });
      // The second half of step 2 is not computed: a step has one call for each of its two batches.
      await assert.rejects(trainer.fit(cut(all, 0, 30), options), refused("busy"));
      await assert.rejects(stopped, { name: "AbortError" });
      assert.deepEqual(seen.slice(-2), ["2: 0 of 2", "2: 1 of 2"]);
      assert.equal(trainer.steps, 1);
      await trainer.close();
      const again = await open(join(work, "cut"));
      assert.equal(again.steps, 1);
      assertSame(await fitted(again), wanted);
      await Promise.all([whole.close(), again.close()]);
    }));

  it("gives the earlier report when it had finished, and refuses other settings", () =>
    inFolder(async (work) => {
      const first = await open(work);
      await fitted(first);
      const steps = first.steps;
      await first.close();
      const again = await open(work);
      await fitted(again);
      assert.equal(again.steps, steps);
      await again.close();
      const other = await open(work);
      await assert.rejects(fitted(other, { epochs: 2 }), refused("other-settings"));
      await other.close();
    }));

  it("of an app continues with other data after its process ended, as within one process", () =>
    inFolder(async (work) => {
      const all = await data();
      const [first, second] = [cut(all, 0, 20), cut(all, 20, 40)];
      const opened = (name: string): Promise<Trainer> =>
        Trainer.open(folder(BUNDLE), { ort, state: stateFolder(join(work, name)), replays: false });
      const whole = await opened("whole");
      await whole.fit(first, SETTINGS);
      await whole.fit(second, SETTINGS);
      const before = await opened("cut");
      await before.fit(first, SETTINGS);
      await before.close();
      const after = await opened("cut");
      await after.fit(second, SETTINGS);
      assertSame(after.parameters(), whole.parameters());
      await after.close();
      await whole.close();
    }));

  it("takes more epochs, whose steps are those of a longer run", () =>
    inFolder(async (work) => {
      const rows = cut(await data(), 0, 30);
      const train = async (state: string, epochs: number): Promise<Trainer> => {
        const trainer = await open(join(work, state));
        await trainer.fit(rows, { ...SETTINGS, schedule: "constant", epochs });
        await trainer.close();
        return trainer;
      };
      await train("extended", 3);
      const [extended, whole] = [await train("extended", 5), await train("whole", 5)];
      assertSame(extended.parameters(), whole.parameters());
      assert.deepEqual(extended.history, whole.history);
    }));

  it("resumes from the checkpoint before, where the newest is damaged, and keeps it", () =>
    inFolder(async (work) => {
      await crashed(work, 5);
      const newest = join(work, "checkpoint.safetensors");
      const bytes = await readFile(newest);
      bytes[bytes.length - 5]! ^= 1;
      await writeFile(newest, bytes);
      const trainer = await open(work);
      assert.ok(trainer.steps < 4);
      await trainer.save();
      await trainer.close();
      for (const name of ["checkpoint.safetensors", "checkpoint.previous.safetensors"]) {
        await readTensors(new Uint8Array(await readFile(join(work, name))), name, StateError, true);
      }
    }));

  it("refuses a state of which no checkpoint is whole, of another adapter, and of another seed", () =>
    inFolder(async (work) => {
      await crashed(work, 2);
      await assert.rejects(open(work, 4), refused("other-settings"));
      const trainer = await Trainer.open(folder(BUNDLE), { ort });
      const adapter = trainer.parameters();
      (adapter["base_model.model.head.modules_to_save.default.bias"]!.data as Float32Array)[0] = 1;
      const options = { ort, seed: 3, state: stateFolder(work), adapter };
      await assert.rejects(Trainer.open(folder(BUNDLE), options), refused("foreign-state"));
      for (const name of ["checkpoint.safetensors", "checkpoint.previous.safetensors"]) {
        await writeFile(join(work, name), "nothing");
      }
      await assert.rejects(open(work), refused("damaged-state"));
    }));

  it("is used by one at a time", () =>
    inFolder(async (work) => {
      const first = await open(work);
      await assert.rejects(open(work), refused("state-in-use"));
      await first.close();
      await (await open(work)).close();
    }));

  it("resumes to the last save within one process", () =>
    inFolder(async (work) => {
      const all = await data();
      const trainer = await open(work);
      await assert.rejects(trainer.resume(), refused("no-state"));
      await trainer.step(cut(all, 0, 8));
      await trainer.save();
      const kept = trainer.parameters();
      await trainer.step(cut(all, 8, 16));
      await trainer.resume();
      assert.equal(trainer.steps, 1);
      assertSame(trainer.parameters(), kept);
      await trainer.close();
    }));

  it("loses at most the steps since the last save when its process is killed", () =>
    inFolder(async (work) => {
      const bundle = await copyOfBundle(work);
      const child = spawn(process.execPath, [
        new URL("endless.js", import.meta.url).pathname,
        bundle,
        join(work, "state"),
      ]);
      let said = "";
      for await (const text of child.stdout) {
        said += String(text);
        if (said.split("\n").length > 12) break;
      }
      child.kill("SIGKILL");
      await new Promise((resolve) => child.once("close", resolve));
      const lines = said.trim().split("\n").map(Number);
      const trainer = await Trainer.open(folder(bundle), { ort, state: stateFolder(join(work, "state")) });
      assert.ok(trainer.steps >= 8 && trainer.steps % 4 === 0, `${trainer.steps} steps after ${lines.length} seen`);
      assert.ok(trainer.steps >= lines.length - 1 - 4);
      await trainer.close();
    }));
});
