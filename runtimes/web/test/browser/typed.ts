/** Trains on text that is typed into the page; runs in the browser. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import { Trainer, texts } from "edgepeft-runtime";

export interface Typed {
  readonly losses: readonly number[];
  /** Milliseconds of each step after the second. */
  readonly milliseconds: readonly number[];
  readonly ids: readonly string[];
  readonly accuracy: number | null;
  readonly threads: number;
}

/** Lines of the form `class: text` are the examples; each step takes `batch` of them, in a shuffled order. */
async function typed(threads: number, steps: number, batch: number): Promise<Typed> {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = "/ort/";
  const lines = document
    .querySelector("textarea")!
    .value.split("\n")
    .filter((line) => line.includes(": "));
  const trainer = await Trainer.open("/bundle", { ort });
  const { manifest } = trainer.bundle;
  const read = new TextDecoder().decode(trainer.bundle.file("tokenizer.json"));
  const tokenizer = new Tokenizer(JSON.parse(read) as object, {});
  const parts = lines.map((line) => line.split(/: (.*)/) as [string, string]);
  const labels = parts.map(([name]) => manifest.classes!.indexOf(name));
  const data = texts(
    parts.map(([, text]) => text),
    manifest,
    tokenizer,
    labels,
  );
  const [losses, milliseconds]: [number[], number[]] = [[], []];
  let last = performance.now();
  const progress = ({ step, loss }: { step: number; loss: number }): void => {
    losses.push(loss);
    if (step > 2) milliseconds.push(performance.now() - last);
    last = performance.now();
  };
  await trainer.fit(data, { epochs: 1000, maxSteps: steps, batchSize: batch, lr: 2e-3, progress });
  const { accuracy } = await trainer.evaluate(data);
  const ids = manifest.inputs.map(({ name }) => String((data.batch([0])[name] as ort.Tensor).data));
  await trainer.close();
  return { losses, milliseconds, ids, accuracy, threads: self.crossOriginIsolated ? ort.env.wasm.numThreads : 1 };
}

Object.assign(window, { typed });
