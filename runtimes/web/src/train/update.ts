/** Updates: the trained parameters that a device returns (section 5 of the SPEC). */

import type { Bundle } from "../bundle/bundle.js";
import { deltaCoded } from "../files/index_coding.js";
import { tensorBytes } from "../files/tensorfile.js";
import type { Tensors } from "../files/tensors.js";
import { VERSION } from "../version.js";
import type { Run } from "./run.js";

/**
 * Returns the file that the host merges: the parameters, and where they come from.
 *
 * @param parameters tensors by name, all values finite.
 * @param adapterSha256 hash of the adapter file that the run started from.
 * @param ort version of ONNX Runtime.
 */
export async function updateBytes(
  bundle: Bundle,
  run: Run,
  parameters: Tensors,
  adapterSha256: string,
  ort: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const heldOut = run.heldOutBefore !== null;
  const metadata = {
    format: "edgepeft-update",
    version: "2",
    base_sha256: bundle.baseSha256,
    adapter_sha256: adapterSha256,
    provenance: JSON.stringify(bundle.manifest.provenance),
    num_examples: String(run.examples),
    steps: String(run.step),
    loss_before: lossText(heldOut ? run.heldOutBefore : run.lossBefore),
    loss_after: lossText(heldOut ? run.heldOutAfter : run.lossAfter),
    runtime: `edgepeft-runtime ${VERSION}, onnxruntime ${ort}`,
  };
  return (await tensorBytes(...deltaCoded(parameters, metadata), true)).bytes;
}

function lossText(loss: number | null): string {
  return loss === null || !Number.isFinite(loss) ? "" : String(loss);
}
