/** Checks a batch against the manifest before it is run: ONNX Runtime does not detect every mistake. */

import { BatchError } from "../errors.js";
import type { LabelSpec, Manifest, TensorSpec } from "../bundle/manifest.js";
import {
  ARRAYS,
  type ArrayLike,
  type Numbers,
  Tensor,
  type Tensors,
  asTensor,
  notFinite,
  numbersOf,
  positionOf,
} from "../files/tensors.js";

/** Arrays by the name of an input or a label. */
export type Batch = Readonly<Record<string, ArrayLike>>;

const RANGES: Readonly<Record<string, readonly [number, number]>> = {
  bool: [0, 1],
  uint8: [0, 255],
  int8: [-128, 127],
  int32: [-(2 ** 31), 2 ** 31 - 1],
};

/**
 * Returns the batch as tensors of the declared dtypes. Whole numbers of any kind are accepted if no value is lost.
 *
 * @throws BatchError a tensor is missing, unknown, or has a wrong dtype, shape or value.
 */
export function checkedBatch(batch: Batch, manifest: Manifest, labels = true): Tensors {
  const specs: readonly (TensorSpec | LabelSpec)[] = labels
    ? [...manifest.inputs, ...manifest.labels]
    : manifest.inputs;
  checkNames(batch, specs, manifest);
  const tensors = Object.fromEntries(
    specs.map((spec) => [spec.name, converted(asTensor(batch[spec.name]!, spec.name), spec)]),
  );
  checkShapes(tensors, specs, manifest);
  for (const spec of specs) checkValues(tensors[spec.name]!, spec);
  return tensors;
}

/** Returns the number of examples of a batch: the size of the first axis of the first input. */
export function examplesIn(tensors: Tensors, manifest: Manifest): number {
  return tensors[manifest.inputs[0]!.name]!.dims[0] ?? 1;
}

function checkNames(batch: Batch, specs: readonly TensorSpec[], manifest: Manifest): void {
  const expected = `expected ${specs.map((spec) => spec.name).join(", ")}; found ${Object.keys(batch).join(", ") || "nothing"}`;
  const missing = specs.map((spec) => spec.name).filter((name) => !Object.hasOwn(batch, name));
  if (missing.length > 0) {
    throw new BatchError(
      "missing-input",
      `The batch lacks ${missing.join(", ")}.`,
      expected,
      "name the arrays as the bundle does.",
    );
  }
  const known = new Set([...manifest.inputs, ...manifest.labels].map((spec) => spec.name));
  const unknown = Object.keys(batch).filter((name) => !known.has(name));
  if (unknown.length > 0) {
    const hint = "leave it out of the batch, or name it as the bundle does.";
    throw new BatchError("unknown-input", `The bundle has no input or label ${unknown.join(", ")}.`, expected, hint);
  }
}

function converted(tensor: Tensor, spec: TensorSpec): Tensor {
  if (tensor.type === spec.dtype) return tensor;
  const [floats, wanted] = [tensor.type.startsWith("float"), spec.dtype.startsWith("float")];
  if (floats !== wanted || tensor.type === "string" || tensor.type === "float16" || spec.dtype === "float16") {
    const hint = wanted
      ? `scale the values as in training, and pass them as ${spec.dtype}.`
      : "this input must be integers, such as token ids or class labels.";
    throw wrongDtype(spec, tensor.type, hint);
  }
  const from = numbersOf(tensor);
  if (!wanted) checkRange(from, tensor.type, spec);
  const cast = spec.dtype === "int64" ? BigInt : Number;
  const target = ARRAYS[spec.dtype] as unknown as { from(values: unknown, map: unknown): Numbers };
  return new Tensor(spec.dtype as "float32", target.from(from, cast) as Float32Array, tensor.dims);
}

function checkRange(values: Numbers, dtype: string, spec: TensorSpec): void {
  const [low, high] = RANGES[spec.dtype] ?? [-(2 ** 63), 2 ** 63 - 1024];
  for (const value of values) {
    if (value < low || value > high)
      throw wrongDtype(spec, `${dtype} with ${value}`, `the values must lie from ${low} to ${high}.`);
  }
}

function wrongDtype(spec: TensorSpec, found: string, hint: string): BatchError {
  return new BatchError(
    "wrong-dtype",
    `${spec.name} has the wrong dtype.`,
    `expected ${spec.dtype}, found ${found}`,
    hint,
  );
}

function checkShapes(tensors: Tensors, specs: readonly TensorSpec[], manifest: Manifest): void {
  const sizes = new Map<string, readonly [number, string]>();
  for (const spec of specs) {
    const { dims } = tensors[spec.name]!;
    if (dims.length !== spec.shape.length) throw wrongShape(spec, dims, `it needs ${spec.shape.length} axes.`);
    spec.shape.forEach((dim, axis) => {
      const size = dims[axis]!;
      if (typeof dim === "number") {
        if (size !== dim) throw wrongShape(spec, dims, `axis ${axis} must be ${dim}.`);
        return;
      }
      const [known, where] = sizes.get(dim) ?? [size, spec.name];
      sizes.set(dim, [known, where]);
      if (known !== size)
        throw wrongShape(spec, dims, `axis ${axis} (${dim}) is ${size}, in ${where} it is ${known}; cut or pad.`);
      checkLimits(spec, dims, axis, dim, manifest);
    });
  }
}

function checkLimits(spec: TensorSpec, dims: readonly number[], axis: number, name: string, manifest: Manifest): void {
  const { min, max } = manifest.dimensions.get(name)!;
  const size = dims[axis]!;
  if (size === 0) {
    throw new BatchError(
      "empty-batch",
      `${spec.name} is empty.`,
      `axis ${axis} (${name}) is 0`,
      "leave empty batches out.",
    );
  }
  if (size < min || (max !== null && size > max)) {
    const most = max === null ? "" : ` and at most ${max}`;
    throw wrongShape(spec, dims, `axis ${axis} (${name}) must be at least ${min}${most}; cut or pad.`);
  }
}

function wrongShape(spec: TensorSpec, found: readonly number[], hint: string): BatchError {
  const context = `expected [${spec.shape.join(", ")}], found [${found.join(", ")}]`;
  return new BatchError("wrong-shape", `${spec.name} has the wrong shape.`, context, hint);
}

function checkValues(tensor: Tensor, spec: TensorSpec | LabelSpec): void {
  const position = notFinite(tensor);
  if (position !== null) {
    const hint = "fill or leave out missing values, and keep values within the range of float32.";
    throw new BatchError("not-finite", `${spec.name} contains a value that is not finite.`, position, hint);
  }
  if (!("classes" in spec) || spec.classes === null) return;
  const { classes, ignore_index: ignored } = spec;
  const labels = numbersOf(tensor);
  const wrong = Array.prototype.findIndex.call(
    labels,
    (y: number | bigint) => (y < 0 || y >= classes) && Number(y) !== ignored,
  );
  if (wrong >= 0) {
    const others = ignored === null ? "" : `, or ${ignored} to ignore a label`;
    const found = `found ${labels[wrong]} at [${positionOf(tensor, wrong).join(", ")}]`;
    const context = `expected 0 to ${classes - 1}${others}; ${found}`;
    const hint = "number the classes from 0, as the bundle does.";
    const message = `${spec.name} contains a class index that is out of range.`;
    throw new BatchError("label-out-of-range", message, context, hint);
  }
}
