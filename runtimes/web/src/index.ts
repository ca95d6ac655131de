/**
 * The web runtime of edgepeft: fine-tunes a prepared bundle on ONNX Runtime, in browsers, in Node and in React Native.
 *
 *     import * as ort from "onnxruntime-web/wasm";
 *     import { Trainer, databaseStore } from "edgepeft-runtime";
 *
 *     const trainer = await Trainer.open("bundle/", { ort, state: databaseStore("run") });
 *     await trainer.fit({ image: { data, dims }, labels }, { epochs: 3 });
 *     const update = await trainer.saveUpdate();
 */

export type { Batch } from "./data/batch.js";
export type { AdapterSource } from "./bundle/adapter_source.js";
export { Bundle } from "./bundle/bundle.js";
export { downloaded } from "./bundle/downloads.js";
export { Arrays, type Data, type Dataset } from "./data/datasets.js";
export { BatchError, BundleError, DataError, EdgepeftError, FleetError, StateError, TrainingError } from "./errors.js";
export { type Delivered, FleetDevice } from "./fleet/device.js";
export { type Identity, identityOf } from "./fleet/identity.js";
export { type Memory, type MemoryStore, databaseMemory } from "./fleet/memory.js";
export { type BundleFiles, handleFiles, heldFiles, urlFiles } from "./bundle/files.js";
export type { FitOptions } from "./train/options.js";
export type { CallProgress, EpochRecord, FitReport, Progress } from "./train/records.js";
export { imagesOf, type Pixels } from "./data/image.js";
export type { ImageSpec, Manifest } from "./bundle/manifest.js";
export type { Ort } from "./ort.js";
export { Generator } from "./data/random.js";
export type { Accelerator, Verdict } from "./engine/accelerator.js";
export type { Evaluation } from "./engine/evaluate.js";
export type { Sampling } from "./engine/generate.js";
export { type StateStore, databaseStore, handleStore } from "./train/store.js";
export type { ByteSource } from "./files/source.js";
export { type TensorFile, readTensors, tensorBytes } from "./files/tensorfile.js";
export { type ArrayLike, Tensor, type Tensors } from "./files/tensors.js";
export { type Example, Prompter } from "./data/prompts.js";
export { texts } from "./data/text.js";
export type { Texts, Tokenizer } from "./data/tokens.js";
export { type OpenOptions, Trainer } from "./train/trainer.js";
export { VERSION } from "./version.js";
