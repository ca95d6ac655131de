/** SHA-512 (FIPS 180-4), for signatures: pages without TLS and React Native have no WebCrypto. */

const MASK = (1n << 64n) - 1n;
const BLOCK = 128;

const PRIMES = Array.from({ length: 408 }, (_, i) => i + 2).filter((n) => {
  for (let i = 2; i * i <= n; i++) if (n % i === 0) return false;
  return true;
});
/** The first 64 bits behind the point of the cube roots and of the square roots of the first primes. */
const ROUND = PRIMES.slice(0, 80).map((prime) => root(BigInt(prime) << 192n, 3n) & MASK);
const START = PRIMES.slice(0, 8).map((prime) => root(BigInt(prime) << 128n, 2n) & MASK);

/** Returns the hash of a short message, 64 bytes. */
export function sha512(message: Uint8Array): Uint8Array {
  const padded = new Uint8Array(BLOCK * Math.ceil((message.length + 17) / BLOCK));
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(message.length) * 8n);
  let state = START;
  for (let at = 0; at < padded.length; at += BLOCK) state = compressed(state, view, at);
  const out = new DataView(new ArrayBuffer(64));
  state.forEach((word, i) => out.setBigUint64(8 * i, word));
  return new Uint8Array(out.buffer);
}

function compressed(state: readonly bigint[], view: DataView, at: number): bigint[] {
  const w = Array.from({ length: 16 }, (_, i) => view.getBigUint64(at + 8 * i));
  for (let i = 16; i < 80; i++) {
    const [near, far] = [w[i - 15]!, w[i - 2]!];
    const s0 = right(near, 1n) ^ right(near, 8n) ^ (near >> 7n);
    const s1 = right(far, 19n) ^ right(far, 61n) ^ (far >> 6n);
    w.push((w[i - 16]! + s0 + w[i - 7]! + s1) & MASK);
  }
  let [a, b, c, d, e, f, g, h] = state as [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];
  for (let i = 0; i < 80; i++) {
    const choice = g ^ (e & (f ^ g));
    const first = h + (right(e, 14n) ^ right(e, 18n) ^ right(e, 41n)) + choice + ROUND[i]! + w[i]!;
    const second = (right(a, 28n) ^ right(a, 34n) ^ right(a, 39n)) + ((a & b) | (c & (a | b)));
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) & MASK, c, b, a, (first + second) & MASK];
  }
  return [a, b, c, d, e, f, g, h].map((word, i) => (word + state[i]!) & MASK);
}

function right(word: bigint, by: bigint): bigint {
  return ((word >> by) | (word << (64n - by))) & MASK;
}

/** Returns the whole part of the root, by bisection. */
function root(value: bigint, degree: bigint): bigint {
  let [low, high] = [0n, 1n << 72n];
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** degree <= value) low = middle;
    else high = middle;
  }
  return low;
}
