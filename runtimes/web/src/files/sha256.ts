/** SHA-256 (FIPS 180-4), by WebCrypto if available; it is missing on pages without TLS and in React Native. */

import { sha256 as pure } from "@noble/hashes/sha2.js";
import { bytesToHex, concatBytes } from "@noble/hashes/utils.js";

/** Returns the hash of all parts together in lower-case hex. */
export async function sha256(...parts: readonly Uint8Array[]): Promise<string> {
  const whole = joined(parts);
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) return bytesToHex(pure(whole));
  return bytesToHex(new Uint8Array(await subtle.digest("SHA-256", whole)));
}

/** Joins parts into one array; a single part is not copied. */
export function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const [first] = parts;
  if (parts.length === 1 && first !== undefined) return first as Uint8Array<ArrayBuffer>;
  return concatBytes(...parts) as Uint8Array<ArrayBuffer>;
}

/** Hashes bytes that come in pieces, without WebCrypto, which only hashes what is in memory as a whole. */
export class Hasher {
  private readonly state = pure.create();

  /** Adds bytes. */
  update(bytes: Uint8Array): this {
    this.state.update(bytes);
    return this;
  }

  /** Returns the hash in lower-case hex; nothing may be added afterwards. */
  hex(): string {
    return bytesToHex(this.state.digest());
  }
}
