/** Builds the pages into `dist`. */

import { createHash } from "node:crypto";
import { cp, readFile, readdir, rm, symlink } from "node:fs/promises";
import { join, relative, resolve } from "node:path";
import { build } from "esbuild";

const OUT = "dist";
const ORT = "node_modules/onnxruntime-web/dist";
/** The module for one thread, and the JavaScript that further threads load. */
const MODULE = ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"];
const SMALL = ["drawings", "photos"];
/** These models are too large to be copied, and are there only once they have been prepared. */
const LARGE = ["manner_bundle", "bundles/sentences"];

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

await rm(OUT, { recursive: true, force: true });
await cp("public", OUT, { recursive: true });
for (const name of SMALL) await cp(join("bundles", name), join(OUT, "bundles", name), { recursive: true });
for (const name of MODULE) await cp(join(ORT, name), join(OUT, name));
const entries = ["src/main.ts", "src/worker.ts", "src/manner/page.ts", "src/manner/worker.ts"];
await build({ ...options, entryPoints: entries, outbase: "src" });
// The service worker knows what to keep for the time without a network, and is another one when any of it changes.
const names = (await files(OUT)).sort();
const hash = createHash("sha256");
for (const name of names) hash.update(name).update(await readFile(join(OUT, name)));
const define = { FILES: JSON.stringify(["./", ...names]), VERSION: JSON.stringify(hash.digest("hex").slice(0, 16)) };
await build({ ...options, entryPoints: ["src/service.ts"], define });
for (const name of LARGE) await symlink(resolve(name), join(OUT, name));
console.log(`built ${names.length} files`);
