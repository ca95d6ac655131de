/** What the test page can do; runs in the browser. */

import * as ort from "onnxruntime-web";
import { type Batch, DataError, Trainer, readTensors } from "edgepeft-runtime";

export interface Golden {
  readonly losses: readonly number[];
  readonly evaluation: { readonly loss: number; readonly accuracy: number | null };
  readonly outputs: readonly number[];
  readonly threads: number;
  readonly update: string;
}

type Rows = readonly [number, number];

/** Goes through the golden steps with so many threads. */
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
    const { image, labels } = tensors as { image: ort.Tensor; labels: ort.Tensor };
    const pixels = (image.data as Float32Array).slice(64 * start, 64 * stop);
    return {
      image: { data: pixels, dims: [stop - start, 1, 8, 8] },
      labels: (labels.data as BigInt64Array).slice(start, stop),
    };
  };
  const trainer = await Trainer.open("/golden/bundle", { ort });
  const losses: number[] = [];
  for (const rows of expected.batches) losses.push(await trainer.step(cut(rows)));
  const evaluation = await trainer.evaluate(cut(expected.evaluate));
  const { output } = await trainer.predict(cut(expected.predict));
  const update = btoa(String.fromCharCode(...(await trainer.saveUpdate())));
  await trainer.close();
  const outputs = Array.from(output!.data as Float32Array);
  return { losses, evaluation, outputs, threads: self.crossOriginIsolated ? ort.env.wasm.numThreads : 1, update };
}

Object.assign(window, { golden });
