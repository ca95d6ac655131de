/** Reads a manifest and checks that its fields fit one another. */

import { BundleError } from "../errors.js";
import * as f from "../files/fields.js";
import { elements } from "../files/shapes.js";
import { PART } from "../files/source.js";
import { quoted } from "../shown.js";
import { type Manifest, type PairSpec, type ParameterSpec, broken, manifest, sizeOf } from "./manifest.js";
import { checkFrozen, checkPrograms } from "./program_checks.js";

const VERSION = 2;
/** Most elements of optimizer state for each trainable element: state is allocated from the declared shapes alone. */
const MAX_STATE = 8;

/** Reads the bytes of a `manifest.json`. @throws BundleError it contradicts the SPEC, or is of another version. */
export function readManifest(bytes: Uint8Array): Manifest {
  try {
    const value = f.parseJson(bytes, "manifest.json");
    checkFormat(f.record({ format: f.text, version: f.integer })(value, "manifest.json"));
    const read = manifest(value, "manifest.json");
    checkNames(read);
    checkShapes(read);
    checkSizes(read);
    checkBuckets(read);
    checkSparse(read);
    checkAdapter(read);
    checkGeneration(read);
    checkParts(read);
    checkFrozen(read);
    checkPrograms(read);
    return read;
  } catch (failure) {
    throw failure instanceof f.Wrong ? broken("The manifest does not conform to the SPEC.", failure.message) : failure;
  }
}

function checkFormat(head: { format: string; version: number }): void {
  if (head.format !== "edgepeft-bundle") {
    throw broken("This is no edgepeft bundle.", `format: expected edgepeft-bundle, found ${head.format}`);
  }
  if (head.version !== VERSION) {
    throw new BundleError(
      "bundle-version",
      `The bundle is of version ${head.version}; this runtime knows version ${VERSION}.`,
      "manifest.json: version",
      "update edgepeft-runtime, or prepare the bundle with an edgepeft that fits it.",
    );
  }
}

function checkNames(m: Manifest): void {
  const { inputs, labels, parameters, frozen, optimizer, buckets } = m;
  unique("fed to the graphs", [...inputs, ...labels, ...parameters, ...frozen, ...optimizer.state, ...buckets]);
  unique("of the outputs", m.outputs);
  for (const what of ["inputs", "outputs", "parameters", "buckets"] as const) {
    if (m[what].length === 0) throw broken(`The manifest lists no ${what}.`, `manifest.json: ${what}`);
  }
}

function checkParts(m: Manifest): void {
  for (const [name, { bytes, parts }] of m.files) {
    const count = Math.ceil(bytes / PART);
    if (parts === null || parts.length === count) continue;
    const context = `${quoted(name)}: ${parts.length} hashes for ${count} parts`;
    throw broken(`A file must have one hash for each part of ${PART} bytes.`, context);
  }
}

function unique(what: string, specs: readonly { readonly name: string }[]): void {
  const twice = repeated(specs.map((spec) => spec.name));
  if (twice !== undefined) throw broken(`Two tensors ${what} have the same name.`, `name: ${quoted(twice)}`);
}

/** Returns the first name that occurs twice. */
function repeated(names: readonly string[]): string | undefined {
  const seen = new Set<string>();
  return names.find((name) => seen.size === seen.add(name).size);
}

/** Checks that sizes of tensors are countable, and that the optimizer state is in proportion to the parameters. */
function checkSizes(m: Manifest): void {
  const count = (specs: readonly { readonly shape: readonly (number | string)[] }[]): number => {
    return specs.reduce((sum, { shape }) => {
      const size = elements(shape.map(Number));
      if (size === null) throw broken("A tensor has too many elements.", `shape ${quoted(shape)}`);
      return sum + size;
    }, 0);
  };
  count(m.sparse);
  const [state, trained] = [count(m.optimizer.state), count(m.parameters)];
  if (state > MAX_STATE * trained) {
    const facts = `${state} elements, of ${trained} that train; ${MAX_STATE} for each are the most`;
    throw broken("The optimizer's state is too large.", facts);
  }
}

function checkShapes(m: Manifest): void {
  for (const spec of [...m.inputs, ...m.labels]) {
    const unknown = spec.shape.find((dim) => typeof dim === "string" && !m.dimensions.has(dim));
    if (unknown !== undefined) throw broken("A symbolic dimension is not described.", `${unknown} of ${spec.name}`);
  }
  for (const spec of [...m.parameters, ...m.optimizer.state]) {
    if (spec.shape.some((dim) => typeof dim === "string")) {
      throw broken("A parameter or state has a symbolic dimension.", `${spec.name}: [${spec.shape.join(", ")}]`);
    }
  }
  if (m.image && (m.image.mean.length !== m.image.channels || m.image.std.length !== m.image.channels)) {
    throw broken("An image needs one mean and one std per channel.", "manifest.json: image");
  }
}

function checkBuckets(m: Manifest): void {
  const sizes = new Map(m.parameters.filter((s) => s.role !== "indices").map((spec) => [spec.name, sizeOf(spec)]));
  const members = m.buckets.flatMap((bucket) => bucket.members);
  const odd = members.find((name) => !sizes.has(name)) ?? repeated(members);
  if (odd !== undefined || members.length === 0) {
    throw broken(
      "Each member of a bucket must be a parameter, and of no other bucket.",
      odd === undefined ? "there is none" : `not so: ${odd}`,
    );
  }
  for (const { name, size, members } of m.buckets) {
    const total = members.reduce((sum, member) => sum + (sizes.get(member) ?? 0), 0);
    if (size !== total) throw broken("A bucket's size is not that of its members.", `${name}: ${size}, not ${total}`);
  }
}

function checkSparse(m: Manifest): void {
  const parameters = new Map(m.parameters.map((spec) => [spec.name, spec]));
  for (const spec of m.sparse) {
    const [values, indices] = [parameters.get(spec.values), parameters.get(spec.indices)];
    const fits =
      indices?.dtype === "int32" && indices.role === "indices" && String(values?.shape) === String(indices.shape);
    if (!fits) throw broken("A sparse tensor needs values and indices of one length.", `tensor: ${spec.tensor}`);
  }
  const described = new Set(m.sparse.map((spec) => spec.indices));
  const odd = m.parameters.find((spec) => (spec.role === "indices") !== described.has(spec.name));
  if (odd !== undefined) throw broken("Indices must belong to a sparse tensor.", `parameter: ${odd.name}`);
}

/** Checks that pairs fit their parameters, and that a parameter trains unless it is declared non-trainable. */
function checkAdapter(m: Manifest): void {
  const floats = new Map(m.parameters.filter((s) => s.role !== "indices").map((spec) => [spec.name, spec]));
  const odd = m.adapter.pairs.find((pair) => !pairFits(pair, floats.get(pair.a), floats.get(pair.b)));
  const twice = repeated(m.adapter.pairs.flatMap(({ a, b }) => [a, b]));
  if (odd !== undefined || twice !== undefined) {
    throw broken("A low-rank pair does not fit its parameters.", `layer: ${quoted(odd?.layer ?? twice)}`);
  }
  const members = m.buckets.flatMap((bucket) => bucket.members);
  const all = [...members, ...m.adapter.non_trainable];
  const unknown = repeated(all) ?? all.find((name) => !floats.has(name));
  if (unknown !== undefined || all.length !== floats.size) {
    const facts = unknown === undefined ? `${all.length} names for ${floats.size} parameters` : quoted(unknown);
    throw broken("The non-trainable parameters must be those in no bucket, each once.", `not so: ${facts}`);
  }
}

/** Returns whether two parameters have the roles and shapes of a pair. */
function pairFits(pair: PairSpec, a: ParameterSpec | undefined, b: ParameterSpec | undefined): boolean {
  if (a?.role !== "lora_A" || b?.role !== "lora_B" || pair.rank < 1 || pair.groups < 1 || pair.scale === 0)
    return false;
  const [first, second] = [a.shape.map(Number), b.shape.map(Number)];
  if (first.length !== second.length || first.length < 2) return false;
  if (pair.layout === "graph") {
    return pair.groups === 1 && first.length === 2 && first[1] === pair.rank && second[0] === pair.rank;
  }
  const rows = pair.groups * pair.rank;
  if (pair.layout === "experts") return first.length === 2 && first[0] === rows && second[1] === rows;
  const ones = second.slice(2).every((size) => size === 1);
  return first[0] === rows && second[1] === pair.rank && second[0]! % pair.groups === 0 && ones;
}

function checkGeneration(m: Manifest): void {
  if (m.generation === null) return;
  const { ids, attention_mask, cache } = m.generation;
  const fed = [ids, ...(attention_mask === null ? [] : [attention_mask])].sort();
  const inputs = m.inputs.map((spec) => spec.name).sort();
  if (String(fed) !== String(inputs) || (cache.length > 0 && attention_mask === null)) {
    throw broken("Generation must feed all inputs, with a cache also a mask.", `inputs: ${inputs.join(", ")}`);
  }
}
