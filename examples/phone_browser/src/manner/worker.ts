/** Trains a language model in a worker. Its weights stay in the origin's private file system and are read in parts. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import {
  type Batch,
  type Delivered,
  type Example,
  Prompter,
  Trainer,
  databaseStore,
  downloaded,
} from "edgepeft-runtime";
import { messageOf } from "../failures.js";
import { deliver, startOfRun } from "../fleet/connection.js";
import { get, put, remove } from "../storage.js";
import type { Answer, News, Request, Status } from "./messages.js";

const HERE = new URL(".", self.location.href);
const FOLDER = "edgepeft-manner";
const STATE = "manner";
/** Other examples continue the run, whose state is kept. */
const SETTINGS = { batchSize: 2, lr: 2e-3, schedule: "linear", saveEvery: 5 } as const;
const MAX_NEW_TOKENS = 40;
/** The adapter that the run started from, where it is not the bundle's own. */
const STARTS = "starts";

interface Open {
  readonly trainer: Trainer;
  readonly tokenizer: Tokenizer;
  readonly prompter: Prompter;
}

let open: Open | null = null;
let current = new AbortController();

async function opened(): Promise<Open> {
  await open?.trainer.close();
  open = null;
  const progress = (done: number, all: number): void => tell({ kind: "loading", done, all });
  const root = await navigator.storage.getDirectory();
  const folder = await root.getDirectoryHandle(FOLDER, { create: true });
  const files = await downloaded(new URL("../manner_bundle/", HERE), folder, progress);
  const adapter = await get<Uint8Array>(STARTS, STATE);
  const start = adapter === undefined ? {} : { adapter };
  const trainer = await Trainer.open(files, { ort, state: databaseStore(STATE), replays: false, progress, ...start });
  const { bundle } = trainer;
  const description = JSON.parse(new TextDecoder().decode(bundle.file("tokenizer.json"))) as object;
  const tokenizer = new Tokenizer(description, {});
  return (open = { trainer, tokenizer, prompter: Prompter.of(bundle.manifest, tokenizer) });
}

/** Begins the run with the adapter of the fleet's latest round, if there is one; returns what to say about it. */
async function begun(example: Example): Promise<string | null> {
  const { trainer } = open!;
  const last = trainer.session.run.fits.at(-1);
  if (trainer.steps > 0 || last !== undefined) return null;
  const { adapter, note } = await startOfRun(trainer, one(example));
  if (adapter === null) return note;
  await put(STARTS, STATE, adapter);
  await opened();
  return note;
}

function one(example: Example): Batch {
  return open!.prompter.answered([example]).batch([0]) as Batch;
}

function status(heldBack: Status["heldBack"] = null, note: string | null = null): Status {
  return { steps: open!.trainer.steps, threads: ort.env.wasm.numThreads!, heldBack, note };
}

const verbs = {
  async open({ threads }: Request & { verb: "open" }): Promise<Status> {
    // Next to each other, because the threads load the module's JavaScript again.
    const at = (name: string): string => new URL(`../${name}`, HERE).href;
    ort.env.wasm.wasmPaths = { mjs: at("ort-wasm-simd-threaded.mjs"), wasm: at("ort-wasm-simd-threaded.wasm") };
    ort.env.wasm.numThreads = threads;
    await opened();
    return status();
  },

  async train({ examples, heldBack, epochs }: Request & { verb: "train" }): Promise<Status> {
    const note = await begun(examples[0]!);
    const { trainer, prompter } = open!;
    // They are not passed as `validate`, which would keep the best epoch for them: a correction is to be learned in any case.
    const test = async (): Promise<number> => (await trainer.evaluate(prompter.answered(heldBack), 1)).loss;
    const before = heldBack.length > 0 ? await test() : null;
    await trainer.fit(prompter.answered(examples), {
      ...SETTINGS,
      epochs,
      signal: current.signal,
      callProgress: ({ step, done, calls }) => tell({ kind: "call", step, done, calls }),
      progress: ({ step, total, loss }) => tell({ kind: "step", step, total, loss }),
    });
    return status(before === null ? null : [before, await test()], note);
  },

  /** Answers with the first adapter, which changes nothing, or with the trained one. */
  async ask({ prompt, trained }: Request & { verb: "ask" }): Promise<string> {
    const { trainer, tokenizer, prompter } = open!;
    const tokens: number[] = [];
    const text = (): string => tokenizer.decode(tokens, { skip_special_tokens: true }).trim();
    await trainer.generate(prompter.prompt(prompt), {
      // An answer is no longer than the texts that the model was prepared for.
      maxNewTokens: Math.min(MAX_NEW_TOKENS, trainer.bundle.manifest.text!.max_length),
      signal: current.signal,
      ...(trained ? {} : { adapter: await trainer.bundle.adapter() }),
      progress: (token) => {
        tokens.push(token);
        tell({ kind: "text", trained, text: text() });
      },
    });
    return text();
  },

  update: (): Promise<Uint8Array> => open!.trainer.saveUpdate(),

  deliver: ({ example }: Request & { verb: "deliver" }): Promise<Delivered> => deliver(open!.trainer, one(example)),

  async forget(): Promise<Status> {
    await open!.trainer.close();
    open = null;
    indexedDB.deleteDatabase(`edgepeft:${STATE}`);
    await remove(STARTS, STATE);
    await opened();
    return status();
  },
};

function tell(news: News): void {
  post({ news });
}

function post(answer: Answer): void {
  self.postMessage(answer);
}

let last: Promise<void> = Promise.resolve();

async function answer(data: Exclude<Request, { verb: "stop" }> & { id: number }): Promise<void> {
  try {
    const verb = verbs[data.verb] as (request: Request) => Promise<unknown>;
    post({ id: data.id, result: await verb(data) });
  } catch (failure) {
    post({ id: data.id, error: messageOf(failure) });
  }
}

// `stop` arrives between two calls of a graph, where the runtime lets messages through.
self.onmessage = ({ data }: MessageEvent<Request & { id: number }>): void => {
  if (data.verb === "stop") {
    current.abort(new Error("Stopped."));
    current = new AbortController();
    return;
  }
  const request = data;
  last = last.then(() => answer(request));
};
