/** Trains a language model in a worker. Its weights stay in the origin's private file system and are read in parts. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import { EdgepeftError, Prompter, Trainer, databaseStore, downloaded } from "edgepeft-runtime";
import type { Answer, News, Request, Status } from "./messages.js";

const HERE = new URL(".", self.location.href);
const FOLDER = "edgepeft-manner";
/** A new run for other examples; the state of the last one is kept. */
const SETTINGS = { batchSize: 2, lr: 2e-3, schedule: "linear", saveEvery: 5 } as const;
const MAX_NEW_TOKENS = 40;

interface Open {
  readonly trainer: Trainer;
  readonly tokenizer: Tokenizer;
  readonly prompter: Prompter;
}

let open: Open | null = null;
let current = new AbortController();

const verbs = {
  async open({ threads }: Request & { verb: "open" }): Promise<Status> {
    // Next to each other, because the threads load the module's JavaScript again.
    const at = (name: string): string => new URL(`../${name}`, HERE).href;
    ort.env.wasm.wasmPaths = { mjs: at("ort-wasm-simd-threaded.mjs"), wasm: at("ort-wasm-simd-threaded.wasm") };
    ort.env.wasm.numThreads = threads;
    const progress = (done: number, all: number): void => tell({ kind: "loading", done, all });
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(FOLDER, { create: true });
    const files = await downloaded(new URL("../manner_bundle/", HERE), folder, progress);
    const trainer = await Trainer.open(files, { ort, state: databaseStore("manner"), progress });
    const { bundle } = trainer;
    const description = JSON.parse(new TextDecoder().decode(bundle.file("tokenizer.json"))) as object;
    const tokenizer = new Tokenizer(description, {});
    open = { trainer, tokenizer, prompter: Prompter.of(bundle.manifest, tokenizer) };
    return { steps: trainer.steps, threads };
  },

  async train({ examples, epochs }: Request & { verb: "train" }): Promise<Status> {
    const { trainer, prompter } = open!;
    await trainer.fit(prompter.answered(examples), {
      ...SETTINGS,
      epochs,
      signal: current.signal,
      callProgress: ({ step, done, calls }) => tell({ kind: "call", step, done, calls }),
      progress: ({ step, total, loss }) => tell({ kind: "step", step, total, loss }),
    });
    return { steps: trainer.steps, threads: ort.env.wasm.numThreads! };
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
    post({ id: data.id, error: failure instanceof EdgepeftError ? failure.toString() : String(failure) });
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
