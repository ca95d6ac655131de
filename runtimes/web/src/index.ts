/**
 * The web runtime of edgepeft: fine-tunes a prepared bundle on ONNX Runtime, in browsers, in Node and in React Native.
 *
 *     import * as ort from "onnxruntime-web";
 *     import { Trainer, databaseStore } from "edgepeft-runtime";
 *
 *     const trainer = await Trainer.open("bundle/", { ort, state: databaseStore("run") });
 *     await trainer.fit({ image: { data, dims }, labels }, { epochs: 3 });
 *     const update = await trainer.saveUpdate();
 */

export type { Batch } from "./batch.js";
export { Bundle } from "./bundle.js";
export { Arrays, type Data, type Dataset } from "./data.js";
export { BatchError, BundleError, DataError, EdgepeftError, StateError, TrainingError } from "./errors.js";
export { type BundleFiles, handleFiles, heldFiles, urlFiles } from "./files.js";
export type { FitOptions, Progress, Report } from "./fit.js";
export { imagesOf, type Pixels } from "./image.js";
export type { ImageSpec, Manifest } from "./manifest.js";
export type { Ort } from "./ort.js";
export { Generator } from "./random.js";
export type { Evaluation, Line } from "./run.js";
export { type StateStore, databaseStore, handleStore } from "./store.js";
export { type TensorFile, readTensors, tensorBytes } from "./tensorfile.js";
export { type ArrayLike, Tensor, type Tensors } from "./tensors.js";
export { type Texts, type Tokenizer, texts } from "./text.js";
export { type Adapter, type OpenOptions, Trainer } from "./trainer.js";
export { VERSION } from "./version.js";
