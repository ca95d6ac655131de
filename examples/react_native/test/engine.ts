/**
 * What the runtime computes without ONNX Runtime, for comparison of JavaScript engines: prints it as JSON. `build/golden.json` has the
 * files of a bundle, a tensor file and a link.
 */

import "../polyfills";
import {
  Arrays,
  Bundle,
  EdgepeftError,
  FleetDevice,
  Generator,
  type Memory,
  type Ort,
  heldFiles,
  identityOf,
  readTensors,
  DataError,
  tensorBytes,
} from "edgepeft-runtime";
import { isSignedByHost } from "../../../runtimes/web/src/fleet/signatures";

declare const print: ((text: string) => void) | undefined;
declare function require(file: string): unknown;

interface Golden {
  /** Files by name; all bytes are in base64. */
  readonly bundle: Readonly<Record<string, string>>;
  readonly data: string;
  readonly link: string;
  /** The host's key, the hash of a `latest.json` and its signature, the last two in hex. */
  readonly signed: { readonly key: string; readonly digest: string; readonly signature: string };
}
// It is written when the test runs.
const golden = require("../build/golden.json") as Golden;

const bytesOf = (base64: string): Uint8Array<ArrayBuffer> =>
  Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

/** A bundle is opened and checked, graphs included; there is no session. */
const ort: Ort = {
  env: { versions: { common: "1.24.0" } },
  InferenceSession: {
    create: () => Promise.reject(new Error("there is no ONNX Runtime in this engine")),
  },
};

async function codeOf(work: () => Promise<unknown>): Promise<unknown> {
  try {
    return await work();
  } catch (failure) {
    return failure instanceof EdgepeftError ? [failure.code, failure.message] : String(failure);
  }
}

async function results(): Promise<unknown> {
  const files = Object.entries(golden.bundle).map(([name, text]) => [name, bytesOf(text)] as const);
  const bundle = await Bundle.open(heldFiles(new Map(files), "golden"), ort);
  const data = bytesOf(golden.data);
  const { tensors } = await readTensors(data, "The data", DataError);
  const again = await tensorBytes(tensors, {}, true);
  const damaged = data.slice();
  damaged[9] = 0xff;
  const update = await tensorBytes(await bundle.adapter(), { adapter_sha256: bundle.adapterSha256 }, true);
  const start = bundle.adapterSha256;
  let memory: Memory = {
    rounds: [{ round: 3, sha256: "ab".repeat(32), adapterSha256: start, updateBytes: 1e6 }],
    adapter: null,
    sequence: 7,
    signed: {},
  };
  const store = {
    read: () => Promise.resolve(memory),
    change: (next: (memory: Memory) => Memory) => Promise.resolve((memory = next(memory))),
  };
  // It is signed before it is sent, and there is no network.
  await new FleetDevice(identityOf(golden.link.split("#")[1]!)!, store).deliver(update.bytes).catch(() => undefined);
  const text = "Grüße, 世界 🌍 \ud800";
  const { key, digest, signature } = golden.signed;
  return {
    base: bundle.baseSha256,
    programs: Object.keys(bundle.manifest.programs),
    adapter: update.digest,
    data: [again.digest, new Arrays(tensors).fingerprint(), Object.keys(tensors)],
    damaged: await codeOf(() => readTensors(damaged, "The data", DataError)),
    order: Array.from(new Generator([3, 0]).permutation(20)),
    signed: Object.values(memory.signed).map((sidecar) => new TextDecoder().decode(sidecar)),
    ed25519: [digest, "ab".repeat(32)].map((signed) => isSignedByHost(signed, bytesOf(key), signature)),
    text: [
      Array.from(new TextEncoder().encode(text)),
      new TextDecoder("utf-8", { fatal: true }).decode(new TextEncoder().encode(text)),
    ],
    latin1: new TextDecoder("latin1").decode(Uint8Array.from({ length: 128 }, (_, i) => i)),
    base64: [0, 1, 2, 3].map((count) => btoa("þÿx".slice(0, count))),
  };
}

const say = typeof print === "function" ? print : console.log;
results().then(
  (found) => say(JSON.stringify(found)),
  (failure: unknown) => say(`failed: ${String(failure)} ${(failure as Error).stack ?? ""}`),
);
