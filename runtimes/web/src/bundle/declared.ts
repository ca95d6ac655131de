/** The files of a bundle, and the checks on their names. */

import { BundleError } from "../errors.js";
import type { Manifest } from "./manifest.js";
import { WEIGHTS } from "./program_checks.js";

export const MANIFEST = "manifest.json";
export const MAX_MANIFEST = 2 ** 23;
export const ADAPTER = "adapter.safetensors";
export const OPTIMIZER = "optimizer.onnx";
const REQUIRED = [OPTIMIZER, WEIGHTS, ADAPTER];
export const COPY_AGAIN = "copy the bundle to this device again, or prepare it again.";

/** Checks that the names in `files` stay inside the bundle and include the required ones. */
export function checkDeclared(manifest: Manifest): void {
  for (const name of manifest.files.keys()) {
    if (/[\\:\0]/.test(name) || name.split("/").some((part) => ["", ".", ".."].includes(part))) {
      throw new BundleError(
        "path-escape",
        "The manifest lists a file outside the bundle.",
        `files: ${name}`,
        COPY_AGAIN,
      );
    }
  }
  const absent = REQUIRED.find((name) => !manifest.files.has(name));
  if (absent !== undefined) {
    throw new BundleError(
      "missing-file",
      `The manifest does not list ${absent}.`,
      "every bundle needs this file.",
      COPY_AGAIN,
    );
  }
}
