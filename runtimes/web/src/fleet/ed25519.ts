/**
 * Verifies Ed25519 signatures (RFC 8032, section 5.1), where WebCrypto may be missing.
 *
 * Verification only. It handles nothing secret, so it does no harm that its time depends on the input.
 */

import { joined } from "../files/sha256.js";
import { sha512 } from "./sha512.js";

const P = 2n ** 255n - 19n;
const ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;
const D = modulo(-121665n * power(121666n, P - 2n));
const ROOT = power(2n, (P - 1n) / 4n);

/** A point (x, y) of the curve as (X, Y, Z, T): x = X / Z, y = Y / Z, xy = T / Z. */
type Point = readonly [bigint, bigint, bigint, bigint];

/** The point that everybody multiplies: y = 4/5, x even. */
const BASE = point(modulo(4n * power(5n, P - 2n)), false)!;

/** Returns whether `signature` (64 bytes) is that of `message` under `key` (32 bytes). */
export function verify(key: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  if (key.length !== 32 || signature.length !== 64) return false;
  const [owner, commitment] = [decoded(key), decoded(signature.subarray(0, 32))];
  const scalar = number(signature.subarray(32));
  if (owner === null || commitment === null || scalar >= ORDER) return false;
  const challenge = number(sha512(joined([signature.subarray(0, 32), key, message]))) % ORDER;
  return equal(times(scalar, BASE), sum(commitment, times(challenge, owner)));
}

/** Returns the point of 32 bytes (y, and the lowest bit of x on top), `null` if there is none (section 5.1.3). */
function decoded(bytes: Uint8Array): Point | null {
  const value = number(bytes);
  const y = value & (2n ** 255n - 1n);
  return y < P ? point(y, value >> 255n === 1n) : null;
}

/** Returns the point whose x has x^2 = (y^2 - 1) / (d y^2 + 1) and is odd or even. */
function point(y: bigint, odd: boolean): Point | null {
  const square = modulo((y * y - 1n) * power(modulo(D * y * y + 1n), P - 2n));
  let x = power(square, (P + 3n) / 8n);
  if (modulo(x * x - square) !== 0n) x = modulo(x * ROOT);
  if (modulo(x * x - square) !== 0n || (x === 0n && odd)) return null;
  if ((x % 2n === 1n) !== odd) x = P - x;
  return [x, y, 1n, modulo(x * y)];
}

/** Returns the sum of two points, which may be equal (section 5.1.4). */
function sum(p: Point, q: Point): Point {
  const a = modulo((p[1] - p[0]) * (q[1] - q[0]));
  const b = modulo((p[1] + p[0]) * (q[1] + q[0]));
  const [c, d] = [modulo(2n * D * p[3] * q[3]), modulo(2n * p[2] * q[2])];
  const [e, f, g, h] = [b - a, d - c, d + c, b + a];
  return [modulo(e * f), modulo(g * h), modulo(f * g), modulo(e * h)];
}

/** Returns `scalar` times a point, by doubling and adding. */
function times(scalar: bigint, of: Point): Point {
  let total: Point = [0n, 1n, 1n, 0n];
  for (let [rest, doubled] = [scalar, of]; rest > 0n; rest >>= 1n) {
    if (rest & 1n) total = sum(total, doubled);
    doubled = sum(doubled, doubled);
  }
  return total;
}

function equal(p: Point, q: Point): boolean {
  return modulo(p[0] * q[2] - q[0] * p[2]) === 0n && modulo(p[1] * q[2] - q[1] * p[2]) === 0n;
}

/** Returns a number from its bytes, the lowest first. */
function number(bytes: Uint8Array): bigint {
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

function power(base: bigint, exponent: bigint): bigint {
  let [result, square] = [1n, base];
  for (let rest = exponent; rest > 0n; rest >>= 1n) {
    if (rest & 1n) result = modulo(result * square);
    square = modulo(square * square);
  }
  return result;
}

function modulo(value: bigint): bigint {
  const rest = value % P;
  return rest < 0n ? rest + P : rest;
}
