/** Opens a bundle. Every file is checked against the manifest before anything in it is used. */

import { BundleError, type ErrorClass } from "../errors.js";
import type { BundleFiles } from "./files.js";
import { externalLocations } from "./graphfile.js";
import { type Ort, opensPaths, versionOf } from "../ort.js";
import { type Manifest, type TensorSpec, broken, readManifest, sizeOf } from "./manifest.js";
import { sha256 } from "../files/sha256.js";
import { readTensors } from "../files/tensorfile.js";
import { type Tensors, notFinite, numbersOf } from "../files/tensors.js";

const MANIFEST = "manifest.json";
const MAX_MANIFEST = 2 ** 23;
export const WEIGHTS = "weights.bin";
const ADAPTER = "adapter.safetensors";
/** The files that a run computes with. */
const RUN = ["train.onnx", "optimizer.onnx", "eval.onnx", WEIGHTS];
const REQUIRED = ["train.onnx", "optimizer.onnx", "eval.onnx", "infer.onnx", WEIGHTS, ADAPTER];
const COPY_AGAIN = "copy the bundle to this device again, or prepare it again.";

/** A bundle whose files match its manifest. */
export class Bundle {
  private constructor(
    readonly manifest: Manifest,
    private readonly contents: ReadonlyMap<string, Uint8Array>,
    private readonly weighted: ReadonlySet<string>,
    private readonly pathOf: ((name: string) => string) | undefined,
  ) {}

  /**
   * Reads and checks everything.
   *
   * @param files where the files are.
   * @param ort the package of ONNX Runtime that will run it; its version is checked.
   * @param progress called with the bytes read so far and the bytes in all.
   * @throws BundleError a file is missing, damaged or not allowed, or the manifest is wrong.
   */
  static async open(files: BundleFiles, ort: Ort, progress?: (read: number, all: number) => void): Promise<Bundle> {
    const text = await files.read(MANIFEST);
    if (text.length > MAX_MANIFEST) throw broken("The manifest is too large.", `it has ${text.length} bytes`);
    const manifest = readManifest(text);
    checkRuntime(manifest.min_onnxruntime, versionOf(ort));
    checkDeclared(manifest);
    checkListed(manifest, await files.list?.());
    const all = [...manifest.files.values()].reduce((sum, file) => sum + file.bytes, 0);
    const contents = new Map<string, Uint8Array>();
    const weighted = new Set<string>();
    const pathOf = opensPaths(ort) ? files.path : undefined;
    let read = 0;
    for (const [name, { bytes: size, sha256: expected }] of manifest.files) {
      const bytes = await files.read(name, size);
      if (bytes.length !== size)
        throw damaged(`The file ${name} has the wrong size.`, `expected ${size} bytes, found ${bytes.length}`);
      const digest = await sha256(bytes);
      if (digest !== expected)
        throw damaged(`The file ${name} is not the prepared one.`, `expected SHA-256 ${expected}, found ${digest}`);
      if (name.endsWith(".onnx") && checkedGraph(name, bytes)) weighted.add(name);
      // Weights that have a path are left on disk, where ONNX Runtime maps them.
      if (name !== WEIGHTS || pathOf === undefined) contents.set(name, bytes);
      progress?.((read += size), all);
    }
    return new Bundle(manifest, contents, weighted, pathOf);
  }

  /** The identity of the source's frozen tensors, which an adapter or an update belongs to (section 2 of the SPEC). */
  get baseSha256(): string {
    return this.manifest.base_sha256;
  }

  /** The hash of the graphs and frozen weights of a run, to which a checkpoint belongs. */
  graphsSha256(): Promise<string> {
    const hashes = RUN.map((name) => `${this.manifest.files.get(name)!.sha256}\n`);
    return sha256(new TextEncoder().encode(hashes.join("")));
  }

  /** The hash of the adapter the bundle came with: it names the round. */
  get adapterSha256(): string {
    return this.manifest.files.get(ADAPTER)!.sha256;
  }

  /** Returns the checked bytes of a file that the manifest lists. */
  file(name: string): Uint8Array {
    const bytes = this.contents.get(name);
    if (bytes !== undefined) return bytes;
    throw new BundleError(
      "missing-file",
      `The bundle has no file ${name}.`,
      "the manifest does not list it.",
      COPY_AGAIN,
    );
  }

  /** Returns the files of a session of a graph: a path, or the bytes of the graph and of the weights. */
  graph(name: string): { model: string | Uint8Array; weights: Uint8Array | null } {
    const bytes = this.file(name);
    if (this.pathOf !== undefined) return { model: this.pathOf(name), weights: null };
    return { model: bytes, weights: this.weighted.has(name) ? this.file(WEIGHTS) : null };
  }

  /** Returns the initial parameters, checked against the manifest. */
  async adapter(): Promise<Tensors> {
    const { tensors } = await readTensors(this.file(ADAPTER), `The file ${ADAPTER}`, BundleError);
    return checkedParameters(tensors, this.manifest, `The file ${ADAPTER}`, BundleError);
  }
}

/** Returns parameters as {@link checkedTensors} does; indices must be inside their tensor, or all -1: not picked yet. */
export function checkedParameters(tensors: Tensors, manifest: Manifest, source: string, error: ErrorClass): Tensors {
  const checked = checkedTensors(tensors, manifest.parameters, source, error);
  for (const { indices: name, gradient, tensor, shape } of manifest.sparse) {
    const indices = numbersOf(checked[name]!) as Int32Array;
    const size = sizeOf({ shape });
    const picked = indices.every((index, i) => index >= 0 && index < size && (i === 0 || index > indices[i - 1]!));
    if (!picked && (gradient === null || indices.some((index) => index !== -1))) {
      const context = `tensor ${name}, of ${size} elements of ${tensor}`;
      const hint = "the file is damaged, or written by something else; use another one.";
      const message = `${source} contains indices that are not ascending positions in their tensor.`;
      throw new error("wrong-indices", message, context, hint);
    }
  }
  return checked;
}

/** Returns the tensors in the order of `specs`. Names, shapes and dtypes must be those, and values finite. */
export function checkedTensors(
  tensors: Tensors,
  specs: readonly TensorSpec[],
  source: string,
  error: ErrorClass,
): Tensors {
  const hint = "it belongs to another bundle, or to another preparation of this one.";
  const wanted = new Set(specs.map((spec) => spec.name));
  const absent = [...wanted].filter((name) => !Object.hasOwn(tensors, name));
  const unknown = Object.keys(tensors).filter((name) => !wanted.has(name));
  if (absent.length + unknown.length > 0) {
    const context = `missing: ${listed(absent)}; unknown: ${listed(unknown)}`;
    throw new error("wrong-tensors", `${source} does not contain the bundle's parameters.`, context, hint);
  }
  for (const spec of specs) {
    const { type, dims } = tensors[spec.name]!;
    if (type !== spec.dtype || String(dims) !== String(spec.shape)) {
      const context = `expected ${spec.dtype} [${spec.shape.join(", ")}], found ${type} [${dims.join(", ")}]`;
      throw new error(
        "wrong-tensors",
        `${source} contains a tensor ${spec.name} that does not fit the bundle.`,
        context,
        hint,
      );
    }
    const position = notFinite(tensors[spec.name]!);
    if (position !== null) {
      const hint = "the training that wrote it diverged; use an earlier one.";
      throw new error(
        "not-finite",
        `${source} contains a value that is not finite.`,
        `tensor ${spec.name} ${position}`,
        hint,
      );
    }
  }
  return Object.fromEntries(specs.map(({ name }) => [name, tensors[name]!]));
}

function checkRuntime(needed: string, installed: string | undefined): void {
  const parts = (version: string): number[] => {
    const match = /^\d{1,9}(\.\d{1,9})*/.exec(version);
    if (match === null) throw broken("A version of onnxruntime is not a version.", `found ${version}`);
    return match[0].split(".").map(Number);
  };
  const [least, have] = [parts(needed), parts(installed ?? needed)];
  const older = [0, 1, 2].map((i) => (have[i] ?? 0) - (least[i] ?? 0)).find((difference) => difference !== 0) ?? 0;
  if (older >= 0) return;
  const message = `The bundle needs onnxruntime ${needed} or later; this page has ${installed}.`;
  throw new BundleError(
    "onnxruntime-too-old",
    message,
    "manifest.json: min_onnxruntime",
    `npm install onnxruntime-*@^${needed}.0`,
  );
}

/** Checks that the names in `files` stay inside the bundle and include the required ones. */
function checkDeclared(manifest: Manifest): void {
  for (const name of manifest.files.keys()) {
    if (/[\\:\0]/.test(name) || name.split("/").some((part) => ["", ".", ".."].includes(part))) {
      throw new BundleError(
        "path-escape",
        "The manifest lists a file outside the bundle.",
        `files: ${name}`,
        COPY_AGAIN,
      );
    }
  }
  const absent = REQUIRED.find((name) => !manifest.files.has(name));
  if (absent !== undefined) {
    throw new BundleError(
      "missing-file",
      `The manifest does not list ${absent}.`,
      "every bundle needs this file.",
      COPY_AGAIN,
    );
  }
}

function checkListed(manifest: Manifest, sizes: ReadonlyMap<string, number> | undefined): void {
  const undeclared = [...(sizes?.keys() ?? [])].filter((name) => name !== MANIFEST && !manifest.files.has(name));
  if (undeclared.length > 0) {
    const message = "The bundle contains files that its manifest does not list.";
    const context = `not listed: ${listed(undeclared)}`;
    throw new BundleError("undeclared-file", message, context, "remove them from the bundle.");
  }
}

/** Returns whether a graph reads the weights; it must read no other file. */
function checkedGraph(name: string, bytes: Uint8Array): boolean {
  const locations = externalLocations(bytes);
  const others = [...locations].filter((location) => location !== WEIGHTS);
  if (others.length === 0) return locations.size > 0;
  const message = `The graph ${name} reads a file other than ${WEIGHTS}.`;
  throw new BundleError("path-escape", message, `it names ${listed(others)}`, "do not use this bundle.");
}

function damaged(message: string, context: string): BundleError {
  return new BundleError("damaged-file", message, context, COPY_AGAIN);
}

function listed(names: readonly string[]): string {
  const more = names.length > 5 ? ` and ${names.length - 5} more` : "";
  return [...names].sort().slice(0, 5).join(", ") + more || "none";
}
