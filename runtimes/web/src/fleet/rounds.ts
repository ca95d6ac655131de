/** The files of a round, and the rules by which a device trusts them (sections 8.2 and 8.4 of the SPEC). */

import type { Manifest } from "../bundle/manifest.js";
import { DTYPES, ROLES } from "../bundle/manifest.js";
import { FleetError } from "../errors.js";
import * as f from "../files/fields.js";
import { MAX_AXES } from "../files/shapes.js";
import { isSignedByHost } from "./signatures.js";
import { count, fileBytes, hex, name, readFile } from "./reading.js";
import { sha256 } from "../files/sha256.js";

/** The largest files of each kind; no more is read. */
export const MAX_LATEST_BYTES = 2 ** 14;
export const MAX_ROUND_BYTES = 2 ** 22;
/** By so many rounds an update may be late; one round more is remembered. */
export const MAX_STALENESS = 31;

const number = count(999_999);
const time = f.nullable(f.natural);
const file = f.object({ sha256: f.sha256Text, bytes: f.natural });
const tensor = f.object({
  name: f.text,
  dtype: f.oneOf(DTYPES),
  shape: f.list(f.natural, undefined, MAX_AXES),
  role: f.oneOf(ROLES),
});
const latest = f.object({
  campaign: name,
  round: number,
  round_sha256: f.sha256Text,
  created: f.natural,
  expires: time,
});
const signatures = f.object({ ed25519: f.mapOf(hex(128)) });
const round = f.object({
  campaign: name,
  round: number,
  previous: f.nullable(f.sha256Text),
  restores: f.nullable(f.natural),
  created: f.natural,
  expires: time,
  base_sha256: f.sha256Text,
  adapter: file,
  bundle: f.nullable(file),
  tensors: f.list(tensor),
  max_update_norm: f.nullable(f.number),
  norm_action: f.oneOf(["clip", "refuse"]),
  max_staleness: f.natural,
  min_devices: f.natural,
  limits: f.object({ update_bytes: f.natural, steps: f.nullable(f.natural) }),
});

export type Latest = f.Read<typeof latest>;
export type Round = f.Read<typeof round>;

/** A round that a device has verified. */
export interface Trusted {
  readonly round: number;
  readonly sha256: string;
}

/** Returns the folder of a round: `r000012`. */
export function folderOf(number: number): string {
  return `r${String(number).padStart(6, "0")}`;
}

/**
 * Applies rules 1.1 to 1.5 to `latest.json` and `latest.sig`.
 *
 * @param now seconds since 1970.
 * @throws FleetError the first rule that fails.
 */
export async function readLatest(
  content: Uint8Array,
  signed: Uint8Array,
  owner: { readonly campaign: string; readonly hostKey: Uint8Array },
  trusted: Trusted | null,
  now: number,
): Promise<Latest> {
  const digest = await sha256(content);
  const signature = readSignatures(signed).get(digest);
  if (signature === undefined || !isSignedByHost(digest, owner.hostKey, signature)) {
    const hint = "try again later, it may be half copied; if it stays so, do not use this server.";
    throw new FleetError("bad-signature", "The server's latest round is not signed by the host.", digest, hint);
  }
  const found = readFile(latest, content, "edgepeft-latest", "bad-latest");
  if (found.campaign !== owner.campaign) {
    const facts = `its campaign ${found.campaign}, expected ${owner.campaign}`;
    throw new FleetError("foreign-campaign", "The server belongs to another campaign.", facts, "check the address.");
  }
  checkOrder(found, trusted);
  if (found.expires !== null && now >= found.expires && now >= found.created) {
    const hint = "check the clock of this device, or ask the host for a new round.";
    throw new FleetError("expired-latest", `Round ${found.round} has expired.`, `at ${found.expires}`, hint);
  }
  return found;
}

function readSignatures(bytes: Uint8Array): ReadonlyMap<string, string> {
  // A map has no canonical form of its own: the file is compared with what its fields write.
  const fields = (value: unknown, where: string): { ed25519: Record<string, string> } => {
    return { ed25519: Object.fromEntries(signatures(value, where).ed25519) };
  };
  const { ed25519 } = readFile(fields, bytes, "edgepeft-signatures", "bad-signature");
  return new Map(Object.entries(ed25519));
}

/** Rules 1.3 and 1.4: no device goes back, and no round is replaced by another of its number. */
function checkOrder(latest: Latest, trusted: Trusted | null): void {
  if (trusted === null || latest.round > trusted.round) return;
  if (latest.round < trusted.round) {
    const message = `The server is at round ${latest.round}; this device was at round ${trusted.round} already.`;
    throw new FleetError("round-goes-back", message, null, "the server is out of date; ask the host for a new round.");
  }
  if (latest.round_sha256 !== trusted.sha256) throw rewritten(latest.round);
}

/** Applies rules 1.6 and 1.7 to `round.json`. @throws FleetError the first rule that fails. */
export async function readRound(content: Uint8Array, latest: Latest, trusted: Trusted | null): Promise<Round> {
  await checkHash("round.json", content, latest.round_sha256);
  const found = readFile(round, content, "edgepeft-round", "bad-round", ["max_update_norm"]);
  const names = found.tensors.map((spec) => spec.name);
  const consistent =
    found.campaign === latest.campaign &&
    found.round === latest.round &&
    (found.previous === null) === (found.round === 1) &&
    (found.restores === null || (found.restores >= 1 && found.restores < found.round)) &&
    found.max_staleness <= MAX_STALENESS &&
    (found.max_update_norm === null || found.max_update_norm > 0) &&
    names.length > 0 &&
    new Set(names).size === names.length;
  if (!consistent) {
    const facts = `${found.campaign}, round ${found.round}`;
    throw new FleetError("bad-round", "The server's round.json contradicts itself.", facts, "inform the host.");
  }
  if (trusted !== null && found.round === trusted.round + 1 && found.previous !== trusted.sha256) {
    throw rewritten(trusted.round);
  }
  return found;
}

/** Applies rule 1.10: the round's base and tensors are those of the bundle. */
export function checkBundle(round: Round, { base_sha256, parameters }: Manifest): void {
  const same = JSON.stringify(round.tensors) === JSON.stringify(parameters);
  if (round.base_sha256 === base_sha256 && same) return;
  const message = `The campaign ${round.campaign} trains another model than this one.`;
  const facts = round.base_sha256 === base_sha256 ? "the tensors that train differ" : "the base differs";
  throw new FleetError("foreign-round", message, facts, "choose the model of the campaign, or inform the host.");
}

/** @throws FleetError the file does not have the hash that the host signed. */
export async function checkHash(what: string, content: Uint8Array, expected: string): Promise<void> {
  const found = await sha256(content);
  if (found === expected) return;
  const hint = "try again later, it may be half copied; if it stays so, do not use this server.";
  throw new FleetError("wrong-hash", `${what} does not have the hash that the host signed.`, found, hint);
}

/** A signed statement about an update: who sends it, for which round (section 8.3 of the SPEC). */
export interface Sidecar {
  readonly campaign: string;
  readonly round: number;
  readonly device: string;
  readonly sequence: number;
  readonly sha256: string;
  readonly size: number;
  readonly algorithm: string;
}

/** Returns the canonical form of a sidecar; without a signature, what the signature covers. */
export function sidecarBytes(sidecar: Sidecar, signature?: string): Uint8Array<ArrayBuffer> {
  return fileBytes("edgepeft-delivery", signature === undefined ? sidecar : { ...sidecar, signature });
}

function rewritten(number: number): FleetError {
  const hint = "inform the host that its history was rewritten.";
  return new FleetError("round-differs", `The server has another round ${number} than before.`, null, hint);
}
