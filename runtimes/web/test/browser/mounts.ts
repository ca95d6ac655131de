/** What the test page finds where: packages as they are installed, without a bundler. */

import { join } from "node:path";

const WEB = new URL("../../../", import.meta.url).pathname;

export function mounts(): Record<string, string> {
  return {
    "/": join(WEB, "test/browser"),
    "/code/": join(WEB, "build/test/browser"),
    "/runtime/": join(WEB, "dist"),
    "/common/": join(WEB, "node_modules/onnxruntime-common/dist/esm"),
    "/curves/": join(WEB, "node_modules/@noble/curves"),
    "/hashes/": join(WEB, "node_modules/@noble/hashes"),
    "/ort/": join(WEB, "node_modules/onnxruntime-web/dist"),
    "/tokenizers/": join(WEB, "node_modules/@huggingface/tokenizers/dist"),
    "/golden/": join(WEB, "../../tests/golden"),
  };
}
