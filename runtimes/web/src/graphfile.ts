/**
 * Finds the files that an ONNX graph would read: a walk over the protobuf wire format.
 *
 * Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
 * Wire format: https://protobuf.dev/programming-guides/encoding.
 */

import { BundleError } from "./errors.js";

/** message -> number of a field -> message in that field: every way from a model to a tensor. */
const CHILDREN: Readonly<Record<string, Readonly<Record<number, string>>>> = {
  Model: { 7: "Graph", 20: "Training", 25: "Function" },
  Training: { 1: "Graph", 2: "Graph" },
  Function: { 7: "Node", 11: "Attribute" },
  Graph: { 1: "Node", 5: "Tensor", 15: "SparseTensor" },
  Node: { 5: "Attribute" },
  Attribute: { 5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor" },
  SparseTensor: { 1: "Tensor", 2: "Tensor" },
  Tensor: { 13: "Entry" },
};
const KEY = 1;
const VALUE = 2;

/** The `location` of every tensor that a serialised `ModelProto` keeps in another file. */
export function externalLocations(model: Uint8Array): Set<string> {
  try {
    return new Set(locations(model, "Model"));
  } catch (failure) {
    throw new BundleError(
      "bad-graph",
      "A graph of the bundle is not an ONNX model.",
      String(failure),
      "prepare it again.",
    );
  }
}

function* locations(data: Uint8Array, message: string): Generator<string> {
  if (message === "Entry") {
    const entry = new Map(fields(data));
    const [key, value] = [KEY, VALUE].map((field) => new TextDecoder().decode(entry.get(field)));
    if (key === "location") yield value ?? "";
    return;
  }
  for (const [field, content] of fields(data)) {
    const child = CHILDREN[message]?.[field];
    if (child !== undefined) yield* locations(content, child);
  }
}

/** Number and content of every length-delimited field. */
function* fields(data: Uint8Array): Generator<[number, Uint8Array]> {
  let place = 0;
  while (place < data.length) {
    let tag: number;
    [tag, place] = varint(data, place);
    const kind = tag & 7;
    if (kind === 0) [, place] = varint(data, place);
    else if (kind === 1) place += 8;
    else if (kind === 5) place += 4;
    else if (kind === 2) {
      let length: number;
      [length, place] = varint(data, place);
      if (place + length > data.length) break;
      yield [Math.floor(tag / 8), data.subarray(place, (place += length))];
    } else throw new Error(`unknown wire type ${kind}`);
  }
  if (place !== data.length) throw new Error("a field ends beyond its message");
}

function varint(data: Uint8Array, start: number): [number, number] {
  let value = 0;
  for (let i = 0; i < 10; i++) {
    const byte = data[start + i];
    if (byte === undefined) throw new Error("a number ends beyond its message");
    value += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return [value, start + i + 1];
  }
  throw new Error("a number is longer than 64 bits");
}
