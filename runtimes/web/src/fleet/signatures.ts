/** Signatures over hashes (section 8.1 of the SPEC): Ed25519 of the host, HMAC-SHA256 of a device. */

import { Hasher, joined } from "../files/sha256.js";
import { verify } from "./ed25519.js";

export const HMAC = "hmac-sha256";
const LATEST = "edgepeft/latest/v2";
const UPDATE = "edgepeft/update/v2";
/** Bytes that SHA-256 compresses at a time. */
const BLOCK = 64;

/** Returns whether the host has signed the `latest.json` with this hash. */
export function isSignedByHost(digest: string, hostKey: Uint8Array, signature: string): boolean {
  return verify(hostKey, message(LATEST, digest), bytesOfHex(signature));
}

/** Returns the signature of an update's sidecar, in hex; `key` is the one shared with the host. */
export function signedUpdate(digest: string, key: Uint8Array): string {
  return hexOf(hmac(key, message(UPDATE, digest)));
}

export function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function bytesOfHex(hex: string): Uint8Array {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

function message(domain: string, digest: string): Uint8Array {
  return new TextEncoder().encode(`${domain}\n${digest}\n`);
}

/** HMAC (RFC 2104) with a key of at most one block. */
function hmac(key: Uint8Array, text: Uint8Array): Uint8Array {
  const padded = (pad: number): Uint8Array => Uint8Array.from({ length: BLOCK }, (_, i) => (key[i] ?? 0) ^ pad);
  const inner = new Hasher().update(joined([padded(0x36), text])).digest();
  return new Hasher().update(joined([padded(0x5c), inner])).digest();
}
