/** SHA-256 (FIPS 180-4). WebCrypto computes it if available; it is missing on pages without TLS and in React Native. */

/** Bytes that are compressed at a time. */
const BLOCK = 64;

/** Returns the hash of all parts together in lower-case hex. */
export async function sha256(...parts: readonly Uint8Array[]): Promise<string> {
  const whole = joined(parts);
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) return new Hasher().update(whole).hex();
  return hex(new Uint8Array(await subtle.digest("SHA-256", whole)));
}

/** Joins parts into one array; a single part is not copied. */
export function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const [first] = parts;
  if (parts.length === 1 && first !== undefined) return first as Uint8Array<ArrayBuffer>;
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let length = 0;
  for (const part of parts) {
    whole.set(part, length);
    length += part.length;
  }
  return whole;
}

const PRIMES = Array.from({ length: 311 }, (_, i) => i + 2).filter((n) => {
  for (let i = 2; i * i <= n; i++) if (n % i === 0) return false;
  return true;
});
const ROUND = Int32Array.from(PRIMES.slice(0, 64), (prime) => fraction(Math.cbrt(prime)));
const START = Int32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

/** Hashes bytes that come in pieces, without WebCrypto, which only hashes what is in memory as a whole. */
export class Hasher {
  private readonly state = Int32Array.from(START);
  private readonly rest = new Uint8Array(BLOCK);
  private readonly words = new Int32Array(64);
  private length = 0;

  /** Adds bytes. */
  update(bytes: Uint8Array): this {
    let from = 0;
    const held = this.length % BLOCK;
    this.length += bytes.length;
    if (held > 0) {
      from = Math.min(BLOCK - held, bytes.length);
      this.rest.set(bytes.subarray(0, from), held);
      if (held + from < BLOCK) return this;
      this.blocks(this.rest, 0, BLOCK);
    }
    const end = bytes.length - ((bytes.length - from) % BLOCK);
    this.blocks(bytes, from, end);
    this.rest.set(bytes.subarray(end));
    return this;
  }

  /** Returns the hash; nothing may be added afterwards. */
  digest(): Uint8Array {
    const length = this.length;
    const held = length % BLOCK;
    const last = new Uint8Array(held < BLOCK - 8 ? BLOCK - held : 2 * BLOCK - held);
    last[0] = 0x80;
    new DataView(last.buffer).setBigUint64(last.length - 8, BigInt(length) * 8n);
    this.update(last);
    const out = new DataView(new ArrayBuffer(32));
    this.state.forEach((word, i) => out.setInt32(4 * i, word));
    return new Uint8Array(out.buffer);
  }

  /** Returns the hash in lower-case hex. */
  hex(): string {
    return hex(this.digest());
  }

  private blocks(bytes: Uint8Array, from: number, to: number): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let block = from; block < to; block += BLOCK) {
      for (let i = 0; i < 16; i++) this.words[i] = view.getInt32(block + 4 * i);
      compress(this.state, this.words);
    }
  }
}

function compress(state: Int32Array, w: Int32Array): void {
  for (let i = 16; i < 64; i++) {
    const near = w[i - 15]!;
    const far = w[i - 2]!;
    const s0 = turn(near, 7) ^ turn(near, 18) ^ (near >>> 3);
    const s1 = turn(far, 17) ^ turn(far, 19) ^ (far >>> 10);
    w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
  }
  let a = state[0]!;
  let b = state[1]!;
  let c = state[2]!;
  let d = state[3]!;
  let e = state[4]!;
  let f = state[5]!;
  let g = state[6]!;
  let h = state[7]!;
  for (let i = 0; i < 64; i++) {
    const choice = g ^ (e & (f ^ g));
    const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + choice + ROUND[i]! + w[i]!) | 0;
    const majority = (a & b) | (c & (a | b));
    const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + majority) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + first) | 0;
    d = c;
    c = b;
    b = a;
    a = (first + second) | 0;
  }
  state[0] = (state[0]! + a) | 0;
  state[1] = (state[1]! + b) | 0;
  state[2] = (state[2]! + c) | 0;
  state[3] = (state[3]! + d) | 0;
  state[4] = (state[4]! + e) | 0;
  state[5] = (state[5]! + f) | 0;
  state[6] = (state[6]! + g) | 0;
  state[7] = (state[7]! + h) | 0;
}

function turn(word: number, by: number): number {
  return (word >>> by) | (word << (32 - by));
}

function fraction(root: number): number {
  return Math.floor((root - Math.floor(root)) * 2 ** 32) | 0;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
