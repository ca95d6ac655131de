/** Checks programs and frozen tensors as far as the manifest alone allows (sections 2 and 3 of the SPEC). */

import { ARRAYS, itemSize } from "../files/tensors.js";
import { quoted } from "../shown.js";
import { type Manifest, broken } from "./manifest.js";
import { type Accumulation, type Call, byName } from "./programs.js";

export const WEIGHTS = "weights.bin";
/** Offsets in `weights.bin` are multiples of a page, so that a tensor can be mapped. */
const ALIGNMENT = 4096;

/** Refuses programs that name unknown graphs or buckets, or that do not fit the rest. @throws BundleError */
export function checkPrograms(m: Manifest): void {
  const programs = byName(m.programs);
  for (const [name, calls] of programs) {
    calls.forEach((call, index) => checkCall(m, `programs: ${name}[${index}]`, call, name === "train"));
  }
  const added = new Set(m.programs.train.flatMap((call) => call.accumulate.map(({ bucket }) => bucket)));
  const idle = m.buckets.find(({ name }) => !added.has(name));
  if (idle !== undefined) throw broken("No call of train adds to a bucket.", `bucket: ${quoted(idle.name)}`);
  if (m.sparse.some(({ gradient }) => gradient !== null) !== (m.programs.select !== null)) {
    throw broken("A bundle must have both sparse gradients and the program select, or neither.", "programs");
  }
  if ((m.generation?.cache ?? []).length > 0 !== (m.programs.generate !== null)) {
    throw broken("A bundle must have both a cache and the program generate, or neither.", "programs");
  }
}

function checkCall(m: Manifest, where: string, call: Call, adds: boolean): void {
  // Only files named so are checked as graphs.
  if (!m.files.has(call.graph) || !call.graph.endsWith(".onnx")) {
    throw broken("A program names a graph that is not among the files.", `${where}: ${quoted(call.graph)}`);
  }
  if (call.accumulate.length > 0 && !adds) throw broken("Only the program train has accumulators.", where);
  for (const item of call.accumulate) checkAccumulation(m, where, item);
}

function checkAccumulation(m: Manifest, where: string, { bucket: name, offset }: Accumulation): void {
  const bucket = m.buckets.find((bucket) => bucket.name === name);
  if (bucket === undefined) {
    throw broken("A program names a bucket that there is not.", `${where}: ${quoted(name)}`);
  }
  if (offset >= bucket.size) {
    const facts = `${where}: ${offset} in ${quoted(name)}, which has ${bucket.size} elements`;
    throw broken("A program adds a gradient outside its bucket.", facts);
  }
}

/** Refuses frozen tensors that are not in `weights.bin`. @throws BundleError */
export function checkFrozen(m: Manifest): void {
  const size = m.files.get(WEIGHTS)?.bytes ?? 0;
  for (const { name, dtype, shape, bytes, offset } of m.frozen) {
    if (offset % ALIGNMENT !== 0 || offset + bytes > size) {
      const facts = `${quoted(name)}: ${bytes} bytes at ${offset} of ${size}`;
      throw broken(`A frozen tensor is not at a multiple of ${ALIGNMENT} in ${WEIGHTS}.`, facts);
    }
    const known = Object.hasOwn(ARRAYS, dtype) && shape.every((dim) => typeof dim === "number");
    const expected = shape.reduce<number>((product, dim) => product * Number(dim), known ? itemSize(dtype) : 0);
    if (known && expected !== bytes) {
      const facts = `${quoted(name)}: ${dtype} [${shape.join(", ")}] of ${bytes} bytes`;
      throw broken("The size of a frozen tensor does not match its shape.", facts);
    }
  }
}
