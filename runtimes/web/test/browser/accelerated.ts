/** Trains with an accelerator; runs in the browser. */

import * as ort from "onnxruntime-web/wasm";
import { type Batch, DataError, type Ort, Trainer, type Verdict, readTensors } from "edgepeft-runtime";

export interface Accelerated {
  /** The losses of three steps, on the CPU and with the accelerator. */
  readonly cpu: readonly number[];
  readonly accelerated: readonly number[];
  readonly verdicts: readonly Verdict[];
}

/** The packages that have WebGPU: its own, and the older one in which WebAssembly calls JavaScript. */
const PACKAGES = { webgpu: () => import("onnxruntime-web/webgpu"), jsep: () => import("onnxruntime-web/all") };

/** Trains the bundle at `/bundle/` on the batch in `/data/batch.safetensors`. */
async function accelerated(name: keyof typeof PACKAGES): Promise<Accelerated> {
  const other = await PACKAGES[name]();
  for (const { wasm } of [ort.env, other.env]) [wasm.numThreads, wasm.wasmPaths] = [1, "/ort/"];
  const bytes = new Uint8Array(await (await fetch("/data/batch.safetensors")).arrayBuffer());
  const { tensors } = await readTensors(bytes, "The batch", DataError);
  const accelerator = { ort: other as Ort, executionProviders: ["webgpu"] };
  const [cpu] = await losses(await Trainer.open("/bundle", { ort }), tensors);
  const [found, verdicts] = await losses(await Trainer.open("/bundle", { ort, accelerator }), tensors);
  return { cpu, accelerated: found, verdicts };
}

async function losses(trainer: Trainer, batch: Batch): Promise<[number[], readonly Verdict[]]> {
  const found: number[] = [];
  for (let step = 0; step < 3; step++) found.push(await trainer.step(batch));
  await trainer.evaluate(batch);
  await trainer.close();
  return [found, trainer.verdicts];
}

Object.assign(window, { accelerated });
