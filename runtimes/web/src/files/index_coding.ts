/**
 * Delta-coded indices in a tensor file (section 4 of the SPEC): how many positions lie between each and the
 * one before, as unsigned LEB128, seven bits in a byte, the lowest first, the eighth set where another byte follows.
 */

import * as f from "./fields.js";
import { quoted } from "../shown.js";
import { Tensor, type Tensors, numbersOf } from "./tensors.js";

/** Under it the metadata of a file name the tensors that are coded: a JSON list. */
const KEY = "delta_indices";
const MORE = 0x80;
const LONGEST = 5;
const LARGEST = 2 ** 31 - 1;

type Strings = Readonly<Record<string, string>>;

/**
 * Returns the tensors and metadata of a file in which every ascending vector of indices is delta-coded. Such a vector
 * is int32, and strictly ascending from 0 on. Indices that are not picked yet (-1) stay as they are.
 */
export function deltaCoded(tensors: Tensors, metadata: Strings): [Tensors, Strings] {
  const names = Object.keys(tensors).filter((name) => ascends(tensors[name]!));
  if (names.length === 0) return [tensors, metadata];
  const coded = names.sort().map((name): [string, Tensor] => {
    const bytes = encode(numbersOf(tensors[name]!) as Int32Array);
    return [name, new Tensor("uint8", bytes, [bytes.length])];
  });
  return [
    { ...tensors, ...Object.fromEntries(coded) },
    { ...metadata, [KEY]: JSON.stringify(names) },
  ];
}

/**
 * Returns the arguments of {@link deltaCoded}.
 *
 * @throws Wrong the metadata name something that is not delta-coded, or a code is damaged.
 */
export function deltaDecoded(
  tensors: Tensors,
  metadata: ReadonlyMap<string, string>,
): { tensors: Tensors; metadata: ReadonlyMap<string, string> } {
  const text = metadata.get(KEY);
  if (text === undefined) return { tensors, metadata };
  const decoded = new Map(Object.entries(tensors));
  for (const name of f.list(f.text)(f.parseJson(new TextEncoder().encode(text), KEY), KEY)) {
    const tensor = decoded.get(name); // int32 already if a name is listed twice
    if (tensor?.type !== "uint8" || tensor.dims.length !== 1)
      throw new f.Wrong(KEY, `${quoted(name)} is not a vector of bytes.`);
    const indices = decode(numbersOf(tensor) as Uint8Array, name);
    decoded.set(name, new Tensor("int32", indices, [indices.length]));
  }
  return { tensors: Object.fromEntries(decoded), metadata: new Map([...metadata].filter(([key]) => key !== KEY)) };
}

function encode(indices: Int32Array): Uint8Array {
  const bytes: number[] = [];
  let last = -1;
  for (const index of indices) {
    let delta = index - last - 1;
    for (; delta >= MORE; delta >>= 7) bytes.push((delta & 0x7f) | MORE);
    bytes.push(delta);
    last = index;
  }
  return Uint8Array.from(bytes);
}

function decode(bytes: Uint8Array, name: string): Int32Array {
  const damaged = (what: string): f.Wrong => new f.Wrong(KEY, `those of ${quoted(name)} are damaged: ${what}`);
  const indices = new Int32Array(bytes.reduce((count, byte) => count + Number(byte < MORE), 0));
  let [done, last, delta, length] = [0, -1, 0, 0];
  for (const byte of bytes) {
    if (length === LONGEST) throw damaged(`one is longer than ${LONGEST} bytes.`);
    delta += (byte & 0x7f) * 2 ** (7 * length); // not by <<, which ends at 32 bits
    length += 1;
    if (byte >= MORE) continue;
    if (byte === 0 && length > 1) throw damaged("one takes more bytes than it needs.");
    last += delta + 1;
    if (last > LARGEST) throw damaged(`they lead beyond position ${LARGEST}.`);
    indices[done++] = last;
    [delta, length] = [0, 0];
  }
  if (length > 0) throw damaged("the last one is cut short.");
  return indices;
}

function ascends(tensor: Tensor): boolean {
  if (tensor.type !== "int32" || tensor.dims.length !== 1) return false;
  const indices = numbersOf(tensor) as Int32Array;
  return indices.every((index, i) => index > (i === 0 ? -1 : indices[i - 1]!));
}
