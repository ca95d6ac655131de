/** Trains in a worker, so that the page stays alive. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import {
  type Batch,
  type Bundle,
  type BundleFiles,
  type Data,
  type Delivered,
  type Texts,
  Arrays,
  Trainer,
  databaseStore,
  downloaded,
  imagesOf,
  texts,
  urlFiles,
} from "edgepeft-runtime";
import { messageOf } from "./failures.js";
import { deliver, startOfRun } from "./fleet/connection.js";
import type { Answer, Examples, Guesses, Inputs, Progress, Request, Status, SubjectName } from "./messages.js";
import { get, put, remove } from "./storage.js";

// Such small models are faster on one thread than on several that wait for one another.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", self.location.href).href };

const DATABASES = "edgepeft:";
const SETTINGS = { batchSize: 8, schedule: "cosine", saveEvery: 10 } as const;

/** The adapter that the run of each subject started from, where it is not the bundle's own. */
const STARTS = "starts";
interface Open {
  readonly trainer: Trainer;
  readonly subject: SubjectName;
  readonly state: string;
}
let open: Open | null = null;

/** Opens a subject's bundle with the state of that name; another one is closed first. */
async function opened(subject: SubjectName, state: string): Promise<Trainer> {
  if (open?.subject === subject && open.state === state) return open.trainer;
  await open?.trainer.close();
  open = null;
  const progress = (done: number, all: number): void => post({ loading: { done, all } });
  const adapter = await get<Uint8Array>(STARTS, state);
  const options = { ort, state: databaseStore(state), progress, ...(adapter === undefined ? {} : { adapter }) };
  const trainer = await Trainer.open(await files(subject), options);
  open = { trainer, subject, state };
  return trainer;
}

/** Returns the state of a run on these examples, from the adapter of the fleet's latest round if there is one. */
async function stateOf(subject: SubjectName, train: Examples): Promise<{ state: string; note: string | null }> {
  const { trainer } = open!;
  const name = `${subject}-${fingerprint(train)}`;
  const unfinished = open!.state.startsWith(name) && status(trainer).unfinished;
  if (unfinished) return { state: open!.state, note: null };
  const { adapter, note } = await startOfRun(trainer, oneOf(trainer.bundle, train.inputs));
  if (adapter === null) return { state: name, note };
  const state = `${name}-${fingerprintOf(adapter)}`;
  await put(STARTS, state, adapter);
  return { state, note };
}

/** Removes the other runs of a subject. */
async function removeOthers(subject: SubjectName, state: string | null): Promise<void> {
  for (const other of await kept(subject)) {
    if (other === state) continue;
    indexedDB.deleteDatabase(DATABASES + other);
    await remove(STARTS, other);
  }
}

/** The files of a bundle: the large one is kept by the browser, the service worker keeps the others. */
async function files(subject: SubjectName): Promise<BundleFiles> {
  const url = new URL(`bundles/${subject}/`, self.location.href);
  if (subject !== "sentences") return urlFiles(url);
  const root = await navigator.storage.getDirectory();
  const folder = await root.getDirectoryHandle(`edgepeft-${subject}`, { create: true });
  return downloaded(url, folder, (done, all) => post({ loading: { done, all } }));
}

/** Names of a subject's states that are kept. */
async function kept(subject: SubjectName): Promise<string[]> {
  const names = (await indexedDB.databases()).map(({ name }) => name ?? "");
  const prefix = `${DATABASES}${subject}-`;
  return names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(DATABASES.length));
}

/** Inputs as the model reads them; texts become a data set that pads each batch. */
function dataOf(bundle: Bundle, inputs: Inputs, labels?: readonly number[]): Exclude<Data, readonly Batch[]> {
  if (inputs.kind === "texts") return texts(inputs.texts, bundle.manifest, tokenizerOf(bundle), labels);
  const { manifest } = bundle;
  const image =
    inputs.kind === "photos"
      ? imagesOf(inputs.images, manifest)
      : { data: inputs.values, dims: [inputs.values.length / inputs.side ** 2, 1, inputs.side, inputs.side] };
  return { image, ...(labels === undefined ? {} : { [manifest.labels[0]!.name]: labels }) };
}

function tokenizerOf(bundle: Bundle): Tokenizer {
  return new Tokenizer(JSON.parse(new TextDecoder().decode(bundle.file("tokenizer.json"))) as object, {});
}

function labelled(bundle: Bundle, { inputs, labels }: Examples): Data {
  return dataOf(bundle, inputs, labels);
}

/** The first example alone. */
function oneOf(bundle: Bundle, inputs: Inputs): Batch {
  const data = dataOf(bundle, inputs);
  return ("batch" in data ? (data as Texts) : new Arrays(data as Batch)).batch([0]) as Batch;
}

/** A name that is another one for other examples. */
function fingerprint(examples: Examples): string {
  return fingerprintOf(new TextEncoder().encode(JSON.stringify(examples, (_, value: unknown) => plain(value))));
}

function fingerprintOf(bytes: Uint8Array): string {
  return new Arrays({ bytes: { data: bytes, dims: [1, bytes.length] } }).fingerprint();
}

function plain(value: unknown): unknown {
  return ArrayBuffer.isView(value) ? Array.from(value as Uint8Array) : value;
}

const verbs = {
  /** Goes back to the run that was left when the page was closed. */
  async open({ subject }: Request & { verb: "open" }): Promise<Status> {
    return status(await opened(subject, (await kept(subject))[0] ?? `${subject}-none`));
  },

  /** Trains on the examples; other examples start a new run, the same ones resume the interrupted one. */
  async train({ train, test, epochs }: Request & { verb: "train" }): Promise<Status> {
    const { subject } = open!;
    const { state, note } = await stateOf(subject, train);
    const trainer = await opened(subject, state);
    await removeOthers(subject, state);
    const validate = test.labels.length > 0 ? { validate: labelled(trainer.bundle, test) } : {};
    const progress = ({ step, total, loss }: Omit<Progress, "accuracies">): void => {
      post({ progress: { step, total, loss, accuracies: accuracies(trainer) } });
    };
    await trainer.fit(labelled(trainer.bundle, train), { ...SETTINGS, ...validate, epochs, progress });
    return { ...status(trainer), note };
  },

  /** The model's outputs for one example, with its first adapter and with the trained one. */
  async predict({ inputs }: Request & { verb: "predict" }): Promise<Guesses> {
    const { trainer } = open!;
    const batch = oneOf(trainer.bundle, inputs);
    const name = trainer.bundle.manifest.outputs[0]!.name;
    const first = await trainer.predict(batch, { adapter: await trainer.bundle.adapter() });
    const now = await trainer.predict(batch);
    const [before, after] = [first, now].map((found) => Array.from(found[name]!.data as Float32Array));
    return { before: before!, after: after! };
  },

  update: (): Promise<Uint8Array> => open!.trainer.saveUpdate(),

  deliver({ inputs }: Request & { verb: "deliver" }): Promise<Delivered> {
    const { trainer } = open!;
    return deliver(trainer, oneOf(trainer.bundle, inputs));
  },

  async forget(): Promise<Status> {
    const { subject, trainer } = open!;
    await trainer.close();
    open = null;
    await removeOthers(subject, null);
    return verbs.open({ verb: "open", subject });
  },
};

function status(trainer: Trainer): Status {
  const last = trainer.session.run.fits.at(-1);
  return {
    steps: trainer.steps,
    unfinished: last !== undefined && last.stopped === null,
    accuracies: accuracies(trainer),
    note: null,
  };
}

function accuracies(trainer: Trainer): number[] {
  return trainer.history.flatMap(({ heldOutAccuracy }) => (heldOutAccuracy === null ? [] : [heldOutAccuracy]));
}

function post(answer: Answer): void {
  self.postMessage(answer);
}

/** Requests that change which bundle is open wait for one another; a prediction comes between two steps of a training. */
let last: Promise<unknown> = Promise.resolve();

async function answer(data: Request & { id: number }): Promise<void> {
  try {
    const verb = verbs[data.verb] as (request: Request) => Promise<unknown>;
    post({ id: data.id, result: await verb(data) });
  } catch (failure) {
    post({ id: data.id, error: messageOf(failure) });
  }
}

self.onmessage = ({ data }: MessageEvent<Request & { id: number }>): void => {
  if (data.verb === "predict") void answer(data);
  else last = last.then(() => answer(data));
};
