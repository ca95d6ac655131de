/** Bundles and states where browsers keep them; runs in the browser. */

import * as ort from "onnxruntime-web/wasm";
import {
  type BundleFiles,
  type EdgepeftError,
  type StateStore,
  Trainer,
  databaseStore,
  downloaded,
  handleStore,
} from "edgepeft-runtime";

export interface Stored {
  /** Loss of each step: uninterrupted, and cut off at step 5 and resumed. */
  readonly whole: readonly number[];
  readonly resumed: readonly number[];
  readonly stepsFound: number;
  readonly secondTab: string;
  readonly previousFound: number;
}

const DATA = {
  image: { data: Float32Array.from({ length: 24 * 64 }, (_, i) => Math.sin(i)), dims: [24, 1, 8, 8] },
  labels: Array.from({ length: 24 }, (_, i) => i % 3),
};

/** Opens the golden bundle in the origin's private file system, into which it is downloaded by the first call. */
function stored(bundle: FileSystemDirectoryHandle): Promise<BundleFiles> {
  return downloaded("/golden/bundle", bundle);
}

/** Trains six steps, saved every second one; `die` ends it as a closed tab would. */
async function train(bundle: FileSystemDirectoryHandle, state: StateStore, die?: number): Promise<[number[], Trainer]> {
  const trainer = await Trainer.open(await stored(bundle), { ort, state });
  const losses: number[] = [];
  const progress = ({ step, loss }: { step: number; loss: number }): void => {
    losses.push(loss);
    if (step === die) throw new Error("closed");
  };
  await trainer.fit(DATA, { epochs: 2, saveEvery: 2, progress }).catch((failure: Error) => {
    if (failure.message !== "closed") throw failure;
  });
  return [losses, trainer];
}

async function stores(kind: "database" | "folder"): Promise<Stored> {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/ort/";
  const root = await navigator.storage.getDirectory();
  const bundle = await root.getDirectoryHandle("bundle", { create: true });
  const store = async (name: string): Promise<StateStore> => {
    return kind === "database"
      ? databaseStore(name)
      : handleStore(await root.getDirectoryHandle(name, { create: true }));
  };
  const [whole, first] = await train(bundle, await store("whole"));
  await first.close();
  const [, second] = await train(bundle, await store("cut"), 5);
  const refused = await train(bundle, await store("cut")).catch((failure: EdgepeftError) => failure.code);
  await second.close();
  const again = await Trainer.open(await stored(bundle), { ort, state: await store("cut") });
  const stepsFound = again.steps;
  await again.close();
  const [resumed, third] = await train(bundle, await store("cut"));
  await third.close();
  // What is newest is damaged: the one before is taken.
  const damaged = await store("cut");
  await damaged.replace(new Uint8Array(100), true);
  const last = await Trainer.open(await stored(bundle), { ort, state: damaged });
  const previousFound = last.steps;
  await last.close();
  return { whole, resumed, stepsFound, secondTab: String(refused), previousFound };
}

Object.assign(window, { stores });
