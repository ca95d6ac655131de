/** Trains in a worker, so that the page stays alive. */

import * as ort from "onnxruntime-web/wasm";
import { Arrays, EdgepeftError, Trainer, databaseStore } from "edgepeft-runtime";
import type { Answer, Examples, Guesses, Progress, Request, Status } from "./messages.js";

// So small a model is faster on one thread than on several that wait for one another.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", self.location.href).href };

const DATABASES = "edgepeft:signs-";
const SETTINGS = { batchSize: 8, schedule: "cosine", saveEvery: 10 } as const;

let open: { readonly trainer: Trainer; readonly name: string } | null = null;

/** The trainer whose state is kept under a name; another one is closed first. */
async function trainerOf(name: string): Promise<Trainer> {
  if (open?.name === name) return open.trainer;
  await open?.trainer.close();
  open = null;
  const trainer = await Trainer.open(new URL("bundle/", self.location.href), { ort, state: databaseStore(name) });
  open = { trainer, name };
  return trainer;
}

/** Names of the states that are kept, without the prefix of their databases. */
async function kept(): Promise<string[]> {
  const names = (await indexedDB.databases()).map(({ name }) => name ?? "");
  return names.filter((name) => name.startsWith(DATABASES)).map((name) => name.slice("edgepeft:".length));
}

function arrays({
  image,
  labels,
}: Examples): Record<string, { data: Float32Array; dims: number[] } | readonly number[]> {
  return { image: { data: image, dims: [labels.length, 1, 8, 8] }, labels };
}

const verbs = {
  /** Goes back to the run that was left when the page was closed. */
  async open(): Promise<Status> {
    return status(await trainerOf((await kept())[0] ?? "signs-none"));
  },

  /** Trains on the drawings; other drawings start a new run, the same ones resume the interrupted one. */
  async train({ train, test, epochs }: Request & { verb: "train" }): Promise<Status> {
    const name = `signs-${new Arrays(arrays(train)).fingerprint()}`;
    const trainer = await trainerOf(name);
    for (const other of await kept()) if (other !== name) indexedDB.deleteDatabase(`edgepeft:${other}`);
    const validate = test.labels.length > 0 ? { validate: arrays(test) } : {};
    const progress = ({ step, total, loss }: Omit<Progress, "accuracies">): void => {
      post({ progress: { step, total, loss, accuracies: accuracies(trainer) } });
    };
    await trainer.fit(arrays(train), { ...SETTINGS, ...validate, epochs, progress });
    return status(trainer);
  },

  /** The model's outputs with its first adapter, and with the trained one. */
  async predict({ image }: Request & { verb: "predict" }): Promise<Guesses> {
    const { trainer } = open!;
    const inputs = { image: { data: image, dims: [1, 1, 8, 8] } };
    const first = await trainer.predict(inputs, { adapter: await trainer.bundle.adapter() });
    const now = await trainer.predict(inputs);
    const name = trainer.bundle.manifest.outputs[0]!.name;
    return { before: softmax(first[name]!.data as Float32Array), after: softmax(now[name]!.data as Float32Array) };
  },

  update: (): Promise<Uint8Array> => open!.trainer.saveUpdate(),

  async forget(): Promise<Status> {
    await open?.trainer.close();
    open = null;
    for (const name of await kept()) indexedDB.deleteDatabase(`edgepeft:${name}`);
    return verbs.open();
  },
};

function status(trainer: Trainer): Status {
  const last = trainer.session.run.fits.at(-1);
  return {
    steps: trainer.steps,
    unfinished: last !== undefined && last.stopped === null,
    accuracies: accuracies(trainer),
  };
}

function accuracies(trainer: Trainer): number[] {
  return trainer.history.flatMap(({ heldOutAccuracy }) => (heldOutAccuracy === null ? [] : [heldOutAccuracy]));
}

function softmax(logits: Float32Array): number[] {
  const powers = Array.from(logits, (logit) => Math.exp(logit - Math.max(...logits)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

function post(answer: Answer): void {
  self.postMessage(answer);
}

// Requests are answered one by one; a prediction comes between two steps of a training.
self.onmessage = async ({ data }: MessageEvent<Request & { id: number }>): Promise<void> => {
  try {
    const verb = verbs[data.verb] as (request: Request) => Promise<unknown>;
    post({ id: data.id, result: await verb(data) });
  } catch (failure) {
    post({ id: data.id, error: failure instanceof EdgepeftError ? failure.toString() : String(failure) });
  }
};
