/** Builds the page into `dist`; `node build.mjs serve` then serves it on this machine. */

import { createHash } from "node:crypto";
import { cp, readFile, readdir, rm } from "node:fs/promises";
import { join, relative } from "node:path";
import { build, context } from "esbuild";

const OUT = "dist";
const WASM = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";

const options = {
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  outdir: OUT,
  // The runtime is taken from its source; what it imports is found among the packages of this folder.
  alias: { "edgepeft-runtime": "../../runtimes/web/src/index.ts" },
  nodePaths: ["node_modules"],
};

async function files(folder) {
  const found = await readdir(folder, { withFileTypes: true, recursive: true });
  return found.filter((entry) => entry.isFile()).map((entry) => relative(OUT, join(entry.parentPath, entry.name)));
}

if (process.argv[2] === "serve") {
  const { port } = await (await context({ ...options, entryPoints: [] })).serve({ servedir: OUT, port: 8080 });
  console.log(`http://localhost:${port}/`);
} else {
  await rm(OUT, { recursive: true, force: true });
  await cp("public", OUT, { recursive: true });
  await cp("bundle", join(OUT, "bundle"), { recursive: true });
  await cp(WASM, join(OUT, "ort-wasm-simd-threaded.wasm"));
  await build({ ...options, entryPoints: ["src/main.ts", "src/worker.ts"] });
  // The service worker knows what to keep for the time without a network, and is another one when any of it changes.
  const names = (await files(OUT)).sort();
  const hash = createHash("sha256");
  for (const name of names) hash.update(name).update(await readFile(join(OUT, name)));
  const define = { FILES: JSON.stringify(["./", ...names]), VERSION: JSON.stringify(hash.digest("hex").slice(0, 16)) };
  await build({ ...options, entryPoints: ["src/service.ts"], define });
  console.log(`built ${names.length} files`);
}
