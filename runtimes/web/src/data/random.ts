/**
 * numpy's `default_rng`, so that equal seeds give equal orders in every runtime: SeedSequence, PCG64 (XSL-RR, O'Neill
 * 2014), and the Fisher-Yates shuffle over bounded integers drawn by rejection.
 */

const M32 = 0xffffffffn;
const M64 = (1n << 64n) - 1n;
const M128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** A random generator; numbers of the seed are whole and at least 0. */
export class Generator {
  private state: bigint;
  private readonly increment: bigint;
  private half: number | null = null;

  constructor(seed: readonly number[]) {
    const [a, b, c, d] = seedWords(seed) as [bigint, bigint, bigint, bigint];
    this.increment = ((((c << 64n) | d) << 1n) | 1n) & M128;
    this.state = (((a << 64n) | b) + this.increment) & M128;
    this.advance();
  }

  /** The numbers 0 to count - 1 in a random order: `Generator.permutation(count)`. */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.atMost(i);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }

  /** A number from 0 to 1, 1 excluded: `Generator.random()`. */
  random(): number {
    return Number(this.next64() >> 11n) * 2 ** -53;
  }

  /** A whole number from 0 to `bound`, both included, below 2^32: bits are drawn until they are one. */
  private atMost(bound: number): number {
    const mask = 2 ** (32 - Math.clz32(bound)) - 1;
    for (;;) {
      const drawn = (this.next32() & mask) >>> 0;
      if (drawn <= bound) return drawn;
    }
  }

  /** The lower half of 64 bits first, then the upper. */
  private next32(): number {
    if (this.half !== null) {
      const second = this.half;
      this.half = null;
      return second;
    }
    const bits = this.next64();
    this.half = Number(bits >> 32n);
    return Number(bits & M32);
  }

  private next64(): bigint {
    this.advance();
    const folded = (this.state >> 64n) ^ (this.state & M64);
    const turn = this.state >> 122n;
    return ((folded >> turn) | (folded << (64n - turn))) & M64;
  }

  private advance(): void {
    this.state = (this.state * MULTIPLIER + this.increment) & M128;
  }
}

/** `SeedSequence(seed).generate_state(4, uint64)`. */
function seedWords(seed: readonly number[]): bigint[] {
  const entropy = seed.flatMap((part) => (part >= 2 ** 32 ? [part % 2 ** 32, Math.floor(part / 2 ** 32)] : [part]));
  const pool = mixedPool(entropy);
  let constant = 0x8b51f9dd;
  const words = Array.from({ length: 8 }, (_, i) => {
    const mixed = pool[i % 4]! ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    const word = Math.imul(mixed, constant);
    return BigInt((word ^ (word >>> 16)) >>> 0);
  });
  return [0, 2, 4, 6].map((i) => words[i]! | (words[i + 1]! << 32n));
}

function mixedPool(entropy: readonly number[]): number[] {
  let constant = 0x43b0d7e5;
  const hash = (value: number): number => {
    const mixed = value ^ constant;
    constant = Math.imul(constant, 0x931e8875);
    const word = Math.imul(mixed, constant);
    return word ^ (word >>> 16);
  };
  const mix = (x: number, y: number): number => {
    const word = Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715);
    return word ^ (word >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to]!, hash(pool[from]!));
  }
  for (const word of entropy.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to]!, hash(word));
  }
  return pool;
}
