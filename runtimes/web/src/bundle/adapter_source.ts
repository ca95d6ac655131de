/** An adapter to start from: the bundle's own, a file, or tensors. */

import { BundleError } from "../errors.js";
import { sha256 } from "../files/sha256.js";
import { readTensors, tensorBytes } from "../files/tensorfile.js";
import type { Tensors } from "../files/tensors.js";
import { type Bundle, checkedParameters } from "./bundle.js";

/** The bytes of an adapter or an update, or its tensors by name. */
export type AdapterSource = Uint8Array | Tensors;

/** Parameters by name, and the SHA-256 of their file. */
export interface LoadedAdapter {
  readonly parameters: Tensors;
  readonly sha256: string;
}

/**
 * Returns the parameters of an adapter; without one, those of the bundle's own.
 *
 * @throws BundleError it is damaged, or does not fit the bundle.
 */
export async function loadAdapter(bundle: Bundle, adapter?: AdapterSource): Promise<LoadedAdapter> {
  if (adapter === undefined) return { parameters: await bundle.adapter(), sha256: bundle.adapterSha256 };
  const bytes = adapter instanceof Uint8Array ? adapter : null;
  const tensors =
    bytes === null ? (adapter as Tensors) : (await readTensors(bytes, "The adapter", BundleError)).tensors;
  const parameters = checkedParameters(tensors, bundle.manifest, "The adapter", BundleError);
  return { parameters, sha256: bytes === null ? (await tensorBytes(parameters)).digest : await sha256(bytes) };
}
