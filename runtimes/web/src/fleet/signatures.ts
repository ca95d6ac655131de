/** Signatures over hashes (section 8.1 of the SPEC): Ed25519 of the host, HMAC-SHA256 of a device. */

import { ed25519 } from "@noble/curves/ed25519.js";
import { hmac } from "@noble/hashes/hmac.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";

export const HMAC = "hmac-sha256";
const LATEST = "edgepeft/latest/v2";
const UPDATE = "edgepeft/update/v2";
const SIGNATURE = /^[0-9a-f]{128}$/;

/** Returns whether the host, whose key has 32 bytes, has signed the `latest.json` with this hash. */
export function isSignedByHost(digest: string, hostKey: Uint8Array, signature: string): boolean {
  if (hostKey.length !== 32 || !SIGNATURE.test(signature)) return false;
  // RFC 8032, as in the Python runtime; the library's default accepts points that are not reduced.
  return ed25519.verify(hexToBytes(signature), message(LATEST, digest), hostKey, { zip215: false });
}

/** Returns the signature of an update's sidecar, in hex; `key` is the one shared with the host. */
export function signedUpdate(digest: string, key: Uint8Array): string {
  return bytesToHex(hmac(sha256, key, message(UPDATE, digest)));
}

function message(domain: string, digest: string): Uint8Array {
  return new TextEncoder().encode(`${domain}\n${digest}\n`);
}
