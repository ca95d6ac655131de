/** The identity of a device in a fleet, from the link with which the host invites it (section 8.6 of the SPEC). */

import { FleetError } from "../errors.js";
import { HMAC } from "./signatures.js";
import { name } from "./reading.js";

const VERSION = "2";
const KEY_BYTES = 32;

export interface Identity {
  /** Address of the server, without a slash at the end. */
  readonly server: string;
  readonly campaign: string;
  readonly device: string;
  /** The host's public Ed25519 key. */
  readonly hostKey: Uint8Array;
  /** The key that this device shares with the host. */
  readonly key: Uint8Array;
  /** Its credential at the server. */
  readonly token: string;
}

/**
 * Reads the fragment of a link that `edgepeft keys link` printed.
 *
 * @param fragment what follows `#`.
 * @returns `null` if the fragment is none of an invitation.
 * @throws FleetError it is one, but damaged (`bad-identity`).
 */
export function identityOf(fragment: string): Identity | null {
  // React Native's own class for queries is not complete.
  const fields = new Map(
    fragment
      .replace(/^#/, "")
      .split("&")
      .map((pair) => pair.split("=") as [string, string | undefined]),
  );
  if (!fields.has("edgepeft")) return null;
  try {
    const field = (key: string): string => {
      const value = fields.get(key) ?? "";
      if (value === "") throw new Error(`${key} is missing`);
      return decodeURIComponent(value);
    };
    const [version, algorithm] = [field("edgepeft"), field("algorithm")];
    if (version !== VERSION) throw new Error(`its version is ${version.slice(0, 20)}, not ${VERSION}`);
    if (algorithm !== HMAC) throw new Error(`a device signs with ${HMAC} here, not with ${algorithm.slice(0, 20)}`);
    return {
      server: addressOf(field("server")),
      campaign: name(field("campaign"), "campaign"),
      device: name(field("device"), "device"),
      hostKey: keyOf("host_key", field("host_key")),
      key: keyOf("key", field("key")),
      token: field("token"),
    };
  } catch (failure) {
    const hint = "open the whole link that `edgepeft keys link` printed.";
    throw new FleetError("bad-identity", "The link is damaged.", (failure as Error).message, hint);
  }
}

function addressOf(text: string): string {
  if (!/^https?:\/\/[^/\s?#]+(?:\/[^\s?#]*)?$/.test(text)) throw new Error("server is no http or https address");
  return text.replace(/\/+$/, "");
}

function keyOf(field: string, text: string): Uint8Array {
  const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  if (plain.length !== KEY_BYTES) throw new Error(`${field} has ${plain.length} bytes, not ${KEY_BYTES}`);
  return Uint8Array.from(plain, (character) => character.charCodeAt(0));
}
