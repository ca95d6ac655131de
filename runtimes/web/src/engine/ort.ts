/** What is used of a package of ONNX Runtime: onnxruntime-web, -node or -react-native, passed in by whoever has it. */

import type { InferenceSession } from "onnxruntime-common";
import type { Tensors } from "../files/tensors.js";

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

/** The version of ONNX Runtime that a package brings; `undefined` where it does not say. */
export function versionOf({ env }: Ort): string | undefined {
  return env.versions["web"] ?? env.versions["node"] ?? env.versions["react-native"] ?? env.versions["common"];
}

/** Whether sessions open files by their paths, and map the weights beside them: not in WebAssembly. */
export function opensPaths({ env }: Ort): boolean {
  return env.versions["web"] === undefined;
}
