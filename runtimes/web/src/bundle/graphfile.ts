/**
 * Checks an untrusted ONNX graph: which files it reads, its inputs and outputs, and that its loops end.
 *
 * Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A bundle's graphs have no functions, no sparse
 * tensors and no training information (section 1 of the SPEC), so the schema here has none.
 */

import { BundleError } from "../errors.js";
import { quoted } from "../shown.js";
import type { Interface } from "./plan.js";
import {
  BYTES,
  type Content,
  FIXED32,
  FIXED64,
  type Field,
  type Schema,
  VARINT,
  fields,
  varint,
} from "../files/wire.js";

/** Most runs of the body of a Loop, multiplied by those of the loops around it. */
const MAX_TRIPS = 2n ** 16n;
/** Most levels of graphs inside one another. */
const MAX_DEPTH = 16;
const INT64 = 7n;
const EXTERNAL = 1n;

const one: Field = { wire: BYTES };
const many: Field = { wire: BYTES, repeated: true };
const int: Field = { wire: VARINT };
const ints: Field = { wire: VARINT, repeated: true };
const floats: Field = { wire: FIXED32, repeated: true };
const doubles: Field = { wire: FIXED64, repeated: true };

const SCHEMA: Schema = {
  Model: { 1: int, 2: one, 3: one, 4: one, 5: int, 6: one, 7: one, 8: many, 14: many },
  Graph: { 1: many, 2: one, 5: many, 10: one, 11: many, 12: many, 13: many, 14: many, 16: many },
  Node: { 1: many, 2: many, 3: one, 4: one, 5: many, 6: one, 7: one, 8: one, 9: many },
  // prettier-ignore
  Attribute: {
    1: one, 2: { wire: FIXED32 }, 3: int, 4: one, 5: one, 6: one, 7: floats, 8: ints, 9: many, 10: many, 11: many,
    13: one, 14: one, 15: many, 20: int,
  },
  // prettier-ignore
  Tensor: {
    1: ints, 2: int, 4: floats, 5: ints, 6: many, 7: ints, 8: one, 9: one, 10: doubles, 11: ints, 12: one, 13: many,
    14: int, 16: many,
  },
  Entry: { 1: one, 2: one },
  ValueInfo: { 1: one, 2: one, 3: one, 4: many },
};

/** Values by name: the integer of a constant, `null` for everything else. */
type Scope = ReadonlyMap<string, bigint | null>;

/** A node that contains graphs. */
interface Parent {
  readonly op: string;
  readonly trips: string;
  readonly graphs: readonly Uint8Array[];
}

/** The facts of a graph that a bundle needs. */
export interface GraphFacts {
  /** The files in which tensors are stored. */
  readonly locations: ReadonlySet<string>;
  /** The names of its inputs, without those that have a default value, and of its outputs. */
  readonly interface: Interface;
}

/**
 * Returns the facts about a serialized `ModelProto`.
 *
 * @throws BundleError parsers could read the bytes differently (`bad-graph`), or a loop in it has no bound.
 */
export function checkedGraph(model: Uint8Array): GraphFacts {
  try {
    if (latin1(model.subarray(4, 8)) === "ORTM") throw new Error("it could be mistaken for ONNX Runtime's own format");
    const found = [...fields(model, "Model", SCHEMA)].find(([number]) => number === 7);
    if (found === undefined) throw new Error("it has no graph");
    const locations = new Set<string>();
    const graph = new Graph(locations, 1n, 1);
    graph.read(found[1] as Uint8Array, new Map());
    return { locations, interface: graph.interface() };
  } catch (failure) {
    if (failure instanceof BundleError) throw failure;
    throw new BundleError(
      "bad-graph",
      "A graph of the bundle is not an ONNX model as bundles have them.",
      String(failure),
      "do not use this bundle, or prepare it again.",
    );
  }
}

/** A walk over one graph, which runs `trips` times because of the loops around it. */
class Graph {
  private readonly names = new Map<string, bigint | null>();
  private readonly parents: Parent[] = [];
  private readonly inputs: Uint8Array[] = [];
  private readonly outputs: Uint8Array[] = [];
  private readonly stored = new Set<string>();

  constructor(
    private readonly locations: Set<string>,
    private readonly trips: bigint,
    private readonly depth: number,
  ) {}

  /** Checks a graph, then those inside it, which see its names. */
  read(data: Uint8Array, outer: Scope): void {
    if (this.depth > MAX_DEPTH) throw new Error(`more than ${MAX_DEPTH} graphs lie inside one another`);
    for (const [number, content] of fields(data, "Graph", SCHEMA)) {
      if (number === 1) this.node(content as Uint8Array);
      else if (number === 5) {
        const [name, value] = this.tensor(content as Uint8Array);
        this.define(name, value);
        this.stored.add(name);
      } else if (number === 11) {
        const name = valueName(content as Uint8Array);
        this.define(latin1(name), null);
        this.inputs.push(name);
      } else if (number === 12) this.outputs.push(valueName(content as Uint8Array));
    }
    const scope = new Map([...outer, ...this.names]);
    for (const parent of this.parents) {
      const trips = this.trips * (parent.op === "Loop" ? tripsOf(parent, scope) : 1n);
      if (trips > MAX_TRIPS) throw unbounded(`it runs ${trips} times; at most ${MAX_TRIPS} are allowed`);
      for (const graph of parent.graphs) new Graph(this.locations, trips, this.depth + 1).read(graph, scope);
    }
  }

  /** Returns the names of inputs and outputs. */
  interface(): Interface {
    const inputs = this.inputs.filter((name) => !this.stored.has(latin1(name)));
    return { inputs: inputs.map(utf8), outputs: this.outputs.map(utf8) };
  }

  /** Adds a value. A name that occurs twice is not a constant, because parsers differ on which one counts. */
  private define(name: string, value: bigint | null): void {
    this.names.set(name, this.names.has(name) ? null : value);
  }

  private node(data: Uint8Array): void {
    const [inputs, outputs, read]: [string[], string[], ReturnType<Graph["attribute"]>[]] = [[], [], []];
    const texts = new Map<number, string>();
    for (const [number, content] of fields(data, "Node", SCHEMA)) {
      const bytes = content as Uint8Array;
      if (number === 1) inputs.push(latin1(bytes));
      else if (number === 2) outputs.push(latin1(bytes));
      else if (number === 5) read.push(this.attribute(bytes));
      else if (number === 4 || number === 7) texts.set(number, latin1(bytes));
    }
    const own = ["", "ai.onnx"].includes(texts.get(7) ?? "");
    const op = texts.get(4) ?? "";
    const constant = op === "Constant" && own && read.length === 1 ? read[0]!.value : null;
    for (const name of outputs) this.define(name, constant);
    const graphs = read.flatMap((attribute) => attribute.graphs);
    if (graphs.length === 0) return;
    if (!own || !["If", "Loop", "Scan", "SequenceMap"].includes(op)) {
      throw new Error(`the operator ${quoted(op)} has graphs in it, and is none that may`);
    }
    this.parents.push({ op, trips: inputs[0] ?? "", graphs });
  }

  /** Returns the integer of a constant's attribute, and the graphs in it. */
  private attribute(data: Uint8Array): { value: bigint | null; graphs: readonly Uint8Array[] } {
    const [values, graphs]: [(bigint | null)[], Uint8Array[]] = [[], []];
    let name = "";
    for (const [number, content] of fields(data, "Attribute", SCHEMA)) {
      if (number === 1) name = latin1(content as Uint8Array);
      else if (number === 3) values.push(name === "value_int" ? BigInt.asIntN(64, content as bigint) : null);
      else if (number === 5 || number === 10) {
        const [, value] = this.tensor(content as Uint8Array);
        values.push(number === 5 && name === "value" ? value : null);
      } else if (number === 6 || number === 11) graphs.push(content as Uint8Array);
    }
    return { value: values.length === 1 ? values[0]! : null, graphs };
  }

  /** Returns the name of a tensor, and its value if it is one int64; records the file that stores it. */
  private tensor(data: Uint8Array): [string, bigint | null] {
    let [name, kind, external] = ["", 0n, 0n];
    const [entries, values]: [Uint8Array[], bigint[]] = [[], []];
    for (const [number, content] of fields(data, "Tensor", SCHEMA)) {
      if (number === 8) name = latin1(content as Uint8Array);
      else if (number === 2) kind = small(content);
      else if (number === 14) external = small(content);
      else if (number === 13) entries.push(content as Uint8Array);
      else if (number === 7) values.push(...int64s(content));
      else if (number === 9 && (content as Uint8Array).length === 8) {
        const { buffer, byteOffset } = content as Uint8Array;
        values.push(new DataView(buffer, byteOffset).getBigInt64(0, true));
      }
    }
    if ((external === EXTERNAL) !== entries.length > 0 || external > EXTERNAL) {
      throw new Error(`the tensor ${quoted(name)} says both that it is in another file and that it is not`);
    }
    if (entries.length > 0) this.locations.add(locationOf(entries));
    return [name, kind === INT64 && values.length === 1 && entries.length === 0 ? values[0]! : null];
  }
}

/** Returns the file of a tensor. A key may occur once: parsers differ on which one counts. */
function locationOf(entries: readonly Uint8Array[]): string {
  const said = new Map<string, string>();
  for (const entry of entries) {
    const pair = new Map([...fields(entry, "Entry", SCHEMA)].map(([number, text]) => [number, text as Uint8Array]));
    const key = latin1(pair.get(1) ?? new Uint8Array());
    if (said.has(key) || !["location", "offset", "length"].includes(key)) {
      throw new Error(`the location of a tensor has a key that is repeated or unknown: ${quoted(key)}`);
    }
    said.set(key, latin1(pair.get(2) ?? new Uint8Array()));
  }
  for (const key of ["offset", "length"]) {
    const text = said.get(key) ?? "0";
    if (!/^[0-9]{1,16}$/.test(text)) throw new Error(`the ${key} of a tensor is ${quoted(text)}`);
  }
  return said.get("location") ?? "";
}

/** Returns the most runs of a Loop: its first input, which must be a constant. */
function tripsOf(parent: Parent, scope: Scope): bigint {
  const count = parent.trips === "" ? null : (scope.get(parent.trips) ?? null);
  if (count === null) throw unbounded("its trip count is no constant");
  return count > 0n ? count : 0n;
}

function unbounded(context: string): BundleError {
  return new BundleError(
    "unbounded-loop",
    "A graph of the bundle contains a Loop that may never end.",
    context,
    `give the Loop a constant trip count of at most ${MAX_TRIPS}, or use a Scan.`,
  );
}

function valueName(data: Uint8Array): Uint8Array {
  const name = [...fields(data, "ValueInfo", SCHEMA)].find(([number]) => number === 1);
  return (name?.[1] as Uint8Array | undefined) ?? new Uint8Array();
}

/** Checks a number of which parsers keep the lower 32 bits only. */
function small(content: Content): bigint {
  if ((content as bigint) >= 1n << 31n) throw new Error("a type or a kind is a number beyond 31 bits");
  return content as bigint;
}

/** Returns the first two numbers of an int64 field, packed or not. */
function int64s(content: Content): bigint[] {
  if (typeof content === "bigint") return [BigInt.asIntN(64, content)];
  const numbers: bigint[] = [];
  for (let position = 0; position < content.length && numbers.length < 2;) {
    let value: bigint;
    [value, position] = varint(content, position);
    numbers.push(BigInt.asIntN(64, value));
  }
  return numbers;
}

/** Returns a name as the text that it encodes. */
function utf8(name: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(name);
  } catch {
    throw new Error(`the name ${quoted(latin1(name))} is not UTF-8`);
  }
}

/** Returns bytes as one character each: most names are only compared. */
function latin1(bytes: Uint8Array): string {
  return new TextDecoder("latin1").decode(bytes);
}
