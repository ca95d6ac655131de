/** The part of ONNX Runtime that is used: of onnxruntime-web, -node or -react-native, which the caller passes in. */

import type { InferenceSession } from "onnxruntime-common";
import type { Tensors } from "./files/tensors.js";

export interface Ort {
  readonly InferenceSession: {
    create(model: Uint8Array, options?: InferenceSession.SessionOptions): Promise<Session>;
    create(path: string, options?: InferenceSession.SessionOptions): Promise<Session>;
  };
  readonly env: { readonly versions: { readonly [part: string]: string | undefined } };
}

export interface Session {
  run(feeds: Tensors, fetches: readonly string[]): Promise<Readonly<Record<string, unknown>>>;
  release(): Promise<void>;
}

/** Returns the version of a package of ONNX Runtime; `undefined` if it does not say. */
export function versionOf({ env }: Ort): string | undefined {
  return env.versions["web"] ?? env.versions["node"] ?? env.versions["react-native"] ?? env.versions["common"];
}

/** Returns whether sessions load files by their paths and map the weights next to them: not in WebAssembly. */
export function opensPaths({ env }: Ort): boolean {
  return env.versions["web"] === undefined;
}
