/**
 * Reads the protobuf wire format so strictly that no other parser can read the same bytes differently.
 *
 * https://protobuf.dev/programming-guides/encoding. Parsers differ on, or silently repair, what is refused here: tags
 * beyond 32 bits, numbers in more bytes than they need, groups, fields of number 0, fields of another wire type than
 * the schema's, and a field twice that a message has once. Fields that the schema lacks are refused too, since a later
 * parser may know them.
 */

export const VARINT = 0;
export const FIXED64 = 1;
export const BYTES = 2;
export const FIXED32 = 5;
const SIZES: Readonly<Record<number, bigint>> = { [FIXED64]: 8n, [FIXED32]: 4n };
const LONGEST = 10;

/** A field of a schema: its wire type, and whether a message may have it more than once, numbers packed or not. */
export interface Field {
  readonly wire: number;
  readonly repeated?: boolean;
}
export type Schema = Readonly<Record<string, Readonly<Record<number, Field>>>>;
export type Content = bigint | Uint8Array;

/** Returns number and content of every field of a message. @throws Error parsers could read the bytes differently. */
export function* fields(data: Uint8Array, message: string, schema: Schema): Generator<[number, Content]> {
  const seen = new Set<number>();
  let position = 0;
  while (position < data.length) {
    let tag: bigint;
    [tag, position] = varint(data, position);
    const [number, wire] = [Number(tag >> 3n), Number(tag & 7n)];
    const field = schema[message]![number];
    if (tag >= 1n << 32n || field === undefined)
      throw new Error(`a ${message} has the field ${number}, which it lacks`);
    if (wire !== field.wire && !(field.repeated && wire === BYTES)) {
      throw new Error(`the field ${number} of a ${message} has the wire type ${wire}, not ${field.wire}`);
    }
    if (seen.has(number) && !field.repeated) throw new Error(`a ${message} has the field ${number} twice`);
    seen.add(number);
    let content: Content;
    if (wire === VARINT) [content, position] = varint(data, position);
    else {
      let length = SIZES[wire]!;
      if (wire === BYTES) [length, position] = varint(data, position);
      if (length > BigInt(data.length - position))
        throw new Error(`the field ${number} of a ${message} ends beyond it`);
      content = data.subarray(position, (position += Number(length)));
    }
    yield [number, content];
  }
}

/** Reads an unsigned number of at most 64 bits in as few bytes as possible; returns it and where the next one begins. */
export function varint(data: Uint8Array, start: number): [bigint, number] {
  let value = 0n;
  for (let i = 0; i < LONGEST; i++) {
    const byte = data[start + i];
    if (byte === undefined) throw new Error("a number ends beyond its message");
    value |= BigInt(byte & 0x7f) << BigInt(7 * i);
    if (byte >= 0x80) continue;
    if (byte === 0 && i > 0) throw new Error("a number takes more bytes than it needs");
    if (value >= 1n << 64n) break;
    return [value, start + i + 1];
  }
  throw new Error("a number is longer than 64 bits");
}
