/** Opens a bundle. Every file is checked against the manifest before anything in it is used. */

import { BundleError, type ErrorClass } from "../errors.js";
import { type ByteSource, partHashes, sha256Of } from "../files/source.js";
import { sha256 } from "../files/sha256.js";
import { readTensors } from "../files/tensorfile.js";
import { type Tensor, type Tensors, notFinite, numbersOf, tensorOver } from "../files/tensors.js";
import { type Ort, opensPaths, versionOf } from "../ort.js";
import type { BundleFiles } from "./files.js";
import { checkedGraph } from "./graphfile.js";
import { type FrozenSpec, type ListedFile, type Manifest, type TensorSpec, broken, sizeOf } from "./manifest.js";
import { readManifest } from "./manifest_checks.js";
import { type Interface, type Plan, plan } from "./plan.js";
import { ADAPTER, COPY_AGAIN, MANIFEST, MAX_MANIFEST, OPTIMIZER, checkDeclared } from "./declared.js";
import { WEIGHTS } from "./program_checks.js";
import { type ProgramName, byName, graphsOfRun, programsOfRun } from "./programs.js";

/** Files for another runtime, which contain the weights once more: checked, but not held. */
const FOREIGN = "ort_training/";

/** The content of a bundle after its checks. */
interface Contents {
  /** The bytes of all files but the weights. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly weights: ByteSource;
  /** Inputs and outputs of the graphs. */
  readonly interfaces: ReadonlyMap<string, Interface>;
  /** Graphs that store tensors in `weights.bin`. */
  readonly weighted: ReadonlySet<string>;
}

/** A bundle whose files match its manifest. */
export class Bundle {
  private readonly frozenSpecs: ReadonlyMap<string, FrozenSpec>;

  private constructor(
    readonly manifest: Manifest,
    private readonly contents: Contents,
    private readonly pathOf: ((name: string) => string) | undefined,
  ) {
    this.frozenSpecs = new Map(manifest.frozen.map((spec) => [spec.name, spec]));
  }

  /**
   * Reads and checks everything. The weights are read in parts, and not held.
   *
   * @param files where the files are.
   * @param ort the package of ONNX Runtime that will run it; its version is checked.
   * @param progress called with the bytes checked so far and the bytes in all.
   * @throws BundleError a file is missing, damaged or not allowed, or the manifest is wrong.
   */
  static async open(files: BundleFiles, ort: Ort, progress?: (read: number, all: number) => void): Promise<Bundle> {
    const source = await files.open(MANIFEST, MAX_MANIFEST);
    if (source.size > MAX_MANIFEST) throw broken("The manifest is too large.", `it has ${source.size} bytes`);
    const manifest = readManifest(await read(source, MANIFEST));
    checkRuntime(manifest.min_onnxruntime, versionOf(ort));
    checkDeclared(manifest);
    checkListed(manifest, await files.list?.());
    const contents = await checkedContents(files, manifest, progress);
    const bundle = new Bundle(manifest, contents, opensPaths(ort) ? files.path : undefined);
    for (const [program] of byName(manifest.programs)) bundle.plan(program);
    return bundle;
  }

  /** The identity of the source's frozen tensors, which an adapter or an update belongs to (section 2 of the SPEC). */
  get baseSha256(): string {
    return this.manifest.base_sha256;
  }

  /** The hash of the graphs, programs and frozen weights of a run, to which a checkpoint belongs. */
  graphsSha256(): Promise<string> {
    const { files, programs } = this.manifest;
    const hashes = [...graphsOfRun(programs), OPTIMIZER, WEIGHTS].map((name) => `${files.get(name)!.sha256}\n`);
    return sha256(new TextEncoder().encode(hashes.join("") + programsOfRun(programs)));
  }

  /** The hash of the adapter the bundle came with: it names the round. */
  get adapterSha256(): string {
    return this.manifest.files.get(ADAPTER)!.sha256;
  }

  /** Returns the checked bytes of a file that the manifest lists; `weights.bin` is read in parts only. */
  file(name: string): Uint8Array {
    const bytes = this.contents.files.get(name);
    if (bytes !== undefined) return bytes;
    throw new BundleError(
      "missing-file",
      `The bundle has no file ${name}.`,
      "the manifest does not list it.",
      COPY_AGAIN,
    );
  }

  /**
   * Returns the calls of a program with all names resolved.
   *
   * @param results the values to compute; by default all results of the program.
   */
  plan(program: ProgramName, results?: readonly string[]): Plan {
    return plan(this.manifest, program, (graph) => this.contents.interfaces.get(graph)!, results);
  }

  /** Returns the files of a session of a graph: a path, or the bytes of the graph and, if it reads them, of the weights. */
  async graph(name: string): Promise<{ model: string | Uint8Array; weights: Uint8Array | null }> {
    if (this.pathOf !== undefined) return { model: this.pathOf(name), weights: null };
    const { weights, weighted } = this.contents;
    return { model: this.file(name), weights: weighted.has(name) ? await read(weights, WEIGHTS) : null };
  }

  /** Returns the bytes that a value of a program takes in `weights.bin`; `null` if it is no frozen tensor. */
  frozenBytes(value: string): number | null {
    return this.frozenSpecs.get(value)?.bytes ?? null;
  }

  /** Reads a frozen tensor: a part of `weights.bin`, if possible into the given memory. */
  async frozen(value: string, into?: Uint8Array): Promise<Tensor> {
    const { dtype, shape, offset, bytes } = this.frozenSpecs.get(value)!;
    return tensorOver(dtype, shape.map(Number), await read(this.contents.weights, WEIGHTS, offset, bytes, into));
  }

  /** Returns the initial parameters, checked against the manifest. */
  async adapter(): Promise<Tensors> {
    const { tensors } = await readTensors(this.file(ADAPTER), `The file ${ADAPTER}`, BundleError);
    return checkedParameters(tensors, this.manifest, `The file ${ADAPTER}`, BundleError);
  }

  /** Releases the weights. */
  async close(): Promise<void> {
    await this.contents.weights.close?.();
  }
}

/** Reads all files and compares them with the manifest. */
async function checkedContents(
  files: BundleFiles,
  manifest: Manifest,
  progress?: (read: number, all: number) => void,
): Promise<Contents> {
  const all = [...manifest.files.values()].reduce((sum, file) => sum + file.bytes, 0);
  const [held, interfaces] = [new Map<string, Uint8Array>(), new Map<string, Interface>()];
  const weighted = new Set<string>();
  let [checked, weights]: [number, ByteSource | null] = [0, null];
  const advance = (bytes: number): void => progress?.((checked += bytes), all);
  for (const [name, entry] of manifest.files) {
    const size = entry.bytes;
    const source = await files.open(name, size);
    if (source.size !== size)
      throw damaged(`The file ${name} has the wrong size.`, `expected ${size} bytes, found ${source.size}`);
    const foreign = name.startsWith(FOREIGN);
    const bytes = name === WEIGHTS || (foreign && !name.endsWith(".onnx")) ? null : await read(source, name);
    const [expected, digest] = await hashes(source, bytes, entry, advance);
    if (digest !== expected)
      throw damaged(`The file ${name} is not the prepared one.`, `expected SHA-256 ${expected}, found ${digest}`);
    if (name === WEIGHTS) weights = source;
    else await source.close?.();
    if (bytes !== null && !foreign) held.set(name, bytes);
    if (bytes === null || !name.endsWith(".onnx")) continue;
    const { locations, interface: found } = checkedGraph(bytes);
    checkLocations(name, locations);
    interfaces.set(name, found);
    if (locations.size > 0) weighted.add(name);
  }
  return { files: held, weights: weights!, interfaces, weighted };
}

/** Returns the expected hash of a file and its own; of a file that is not in memory, the first that differs of its parts. */
async function hashes(
  source: ByteSource,
  bytes: Uint8Array | null,
  { sha256: expected, parts }: ListedFile,
  advance: (bytes: number) => void,
): Promise<[string, string]> {
  if (bytes !== null) {
    const digest = await sha256(bytes);
    advance(source.size);
    return [expected, digest];
  }
  if (parts === null) return [expected, await sha256Of(source, advance)];
  const found = await partHashes(source, advance);
  const wrong = Math.max(
    0,
    found.findIndex((hash, i) => hash !== parts[i]),
  );
  return [parts[wrong]!, found[wrong]!];
}

/** Reads a part of a file, by default the whole. @throws BundleError it became shorter, or cannot be read. */
async function read(
  source: ByteSource,
  name: string,
  offset = 0,
  length = source.size,
  into?: Uint8Array,
): Promise<Uint8Array> {
  try {
    const bytes = await source.read(offset, length, into);
    if (bytes.length === length) return bytes;
    throw new Error(`expected ${length} bytes at ${offset}, found ${bytes.length}`);
  } catch (failure) {
    throw damaged(`Cannot read ${length} bytes of the file ${name}.`, String(failure));
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

function checkListed(manifest: Manifest, sizes: ReadonlyMap<string, number> | undefined): void {
  const undeclared = [...(sizes?.keys() ?? [])].filter((name) => name !== MANIFEST && !manifest.files.has(name));
  if (undeclared.length > 0) {
    const message = "The bundle contains files that its manifest does not list.";
    const context = `not listed: ${listed(undeclared)}`;
    throw new BundleError("undeclared-file", message, context, "remove them from the bundle.");
  }
}

/** Refuses a graph that reads a file other than the weights. */
function checkLocations(name: string, locations: ReadonlySet<string>): void {
  const others = [...locations].filter((location) => location !== WEIGHTS);
  if (others.length === 0) return;
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
