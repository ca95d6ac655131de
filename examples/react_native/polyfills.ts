/** What Hermes may lack and the runtime needs: text in UTF-8 and Latin-1, base64, `at`. What is there stays. */

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

class Encoder {
  readonly encoding = "utf-8";

  /** Half of a surrogate pair becomes U+FFFD, as the standard says. */
  encode(text = ""): Uint8Array {
    const bytes: number[] = [];
    for (const character of text) {
      const point = character.codePointAt(0)!;
      bytes.push(...encoded(point >= 0xd800 && point < 0xe000 ? 0xfffd : point));
    }
    return Uint8Array.from(bytes);
  }
}

function encoded(point: number): number[] {
  const tail = (shift: number): number => 0x80 | ((point >> shift) & 0x3f);
  if (point < 0x80) return [point];
  if (point < 0x800) return [0xc0 | (point >> 6), tail(0)];
  if (point < 0x10000) return [0xe0 | (point >> 12), tail(6), tail(0)];
  return [0xf0 | (point >> 18), tail(12), tail(6), tail(0)];
}

class Decoder {
  private readonly latin1: boolean;
  private readonly fatal: boolean;

  constructor(label = "utf-8", { fatal = false }: { readonly fatal?: boolean } = {}) {
    this.latin1 = label === "latin1";
    if (!this.latin1 && label !== "utf-8") throw new RangeError(`no decoder of ${label}`);
    this.fatal = fatal;
  }

  decode(bytes: Uint8Array = new Uint8Array()): string {
    const points = this.latin1 ? Array.from(bytes) : this.points(bytes);
    // In pieces: a call takes only so many arguments.
    const pieces: string[] = [];
    for (let at = 0; at < points.length; at += 4096) pieces.push(String.fromCodePoint(...points.slice(at, at + 4096)));
    return pieces.join("");
  }

  private points(bytes: Uint8Array): number[] {
    const points: number[] = [];
    // A mark of the byte order at the start is none of the text.
    let at = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0;
    while (at < bytes.length) {
      const [point, length] = decodedAt(bytes, at);
      if (point === null && this.fatal) throw new TypeError("it is not UTF-8");
      points.push(point ?? 0xfffd);
      at += length;
    }
    return points;
  }
}

/** Returns the code point at an index, `null` if there is none, and how many bytes it has. */
function decodedAt(bytes: Uint8Array, at: number): [number | null, number] {
  const first = bytes[at]!;
  if (first < 0x80) return [first, 1];
  const length =
    first >= 0xf0 && first < 0xf5 ? 4 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xc2 && first < 0xe0 ? 2 : 0;
  if (length === 0) return [null, 1];
  let point = first & (0xff >> (length + 1));
  for (let i = 1; i < length; i++) {
    const next = bytes[at + i] ?? 0;
    if ((next & 0xc0) !== 0x80) return [null, i];
    point = (point << 6) | (next & 0x3f);
  }
  const least = [0, 0, 0x80, 0x800, 0x10000][length]!;
  return point < least || point > 0x10ffff || (point >= 0xd800 && point < 0xe000) ? [null, 1] : [point, length];
}

function btoa(text: string): string {
  let found = "";
  for (let at = 0; at < text.length; at += 3) {
    const [a, b, c] = [text.charCodeAt(at), text.charCodeAt(at + 1), text.charCodeAt(at + 2)];
    if ((a | b | c) > 0xff) throw new RangeError("base64 is of bytes");
    const bits = (a << 16) | ((b || 0) << 8) | (c || 0);
    const digits = [18, 12, 6, 0].map((shift) => BASE64[(bits >> shift) & 0x3f]!).join("");
    found += digits.slice(0, Math.min(text.length - at, 3) + 1).padEnd(4, "=");
  }
  return found;
}

function atob(text: string): string {
  const digits = text.replace(/\s/g, "").replace(/=+$/, "");
  let [found, bits, count] = ["", 0, 0];
  for (const digit of digits) {
    const value = BASE64.indexOf(digit);
    if (value < 0 || digits.length % 4 === 1) throw new RangeError("it is not base64");
    bits = ((bits << 6) | value) & 0xffffff;
    count += 6;
    if (count >= 8) found += String.fromCharCode((bits >> (count -= 8)) & 0xff);
  }
  return found;
}

const present = globalThis as Record<string, unknown>;
for (const [name, value] of Object.entries({ TextEncoder: Encoder, TextDecoder: Decoder, atob, btoa })) {
  present[name] ??= value;
}

/** Negative positions count from the end. */
function at(this: ArrayLike<unknown>, position: number): unknown {
  return this[position < 0 ? this.length + position : position];
}

for (const { prototype } of [Array, Object.getPrototypeOf(Uint8Array) as typeof Uint8Array]) {
  if (!("at" in prototype)) Object.defineProperty(prototype, "at", { value: at, writable: true, configurable: true });
}
