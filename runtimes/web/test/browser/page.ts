/** What the test page can do; runs in the browser. */

import * as ort from "onnxruntime-web/wasm";
import { type Batch, DataError, Trainer, readTensors } from "edgepeft-runtime";

export interface Golden {
  readonly losses: readonly number[];
  readonly evaluation: { readonly loss: number; readonly accuracy: number | null };
  readonly outputs: readonly number[];
  readonly threads: number;
  readonly update: string;
}

type Rows = readonly [number, number];

/** Goes through the steps of the folder at `/golden/` with so many threads. */
async function golden(threads: number): Promise<Golden> {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = "/ort/";
  const expected = (await (await fetch("/golden/expected.json")).json()) as {
    batches: Rows[];
    evaluate: Rows;
    predict: Rows;
  };
  const bytes = new Uint8Array(await (await fetch("/golden/data.safetensors")).arrayBuffer());
  const { tensors } = await readTensors(bytes, "The data", DataError);
  const cut = ([start, stop]: Rows): Batch => {
    const rows = Object.entries(tensors).map(([name, { data, dims, size, type }]) => {
      const width = size / dims[0]!;
      const part = (data as Float32Array).slice(start * width, stop * width);
      return [name, { data: part, dims: [stop - start, ...dims.slice(1)], type }];
    });
    return Object.fromEntries(rows) as Batch;
  };
  const trainer = await Trainer.open("/golden/bundle", { ort });
  const losses: number[] = [];
  for (const rows of expected.batches) losses.push(await trainer.step(cut(rows)));
  const evaluation = await trainer.evaluate(cut(expected.evaluate));
  const outputs = Object.values(await trainer.predict(cut(expected.predict)));
  const update = btoa(String.fromCharCode(...(await trainer.saveUpdate())));
  await trainer.close();
  const logits = Array.from(outputs[0]!.data as Float32Array);
  return {
    losses,
    evaluation,
    outputs: logits,
    threads: self.crossOriginIsolated ? ort.env.wasm.numThreads : 1,
    update,
  };
}

Object.assign(window, { golden });
