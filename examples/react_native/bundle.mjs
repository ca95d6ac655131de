/** Bundles the app by Metro, and compiles the bundle for Hermes: `node bundle.mjs [ENTRY CONFIG OUT]`. */

import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const FOLDERS = { linux: "linux64-bin", darwin: "osx-bin", win32: "win64-bin" };
const [entry = "index.js", config = "metro.config.js", out = "build"] = process.argv.slice(2);
const script = join(out, "index.android.bundle");

function run(command, ...parts) {
  execFileSync(command, parts, { cwd: HERE, stdio: "inherit" });
}

mkdirSync(join(HERE, out), { recursive: true });
const options = [
  "--platform",
  "android",
  "--dev",
  "false",
  "--entry-file",
  entry,
  "--bundle-output",
  script,
  "--config",
  config,
];
run(process.execPath, "node_modules/@react-native-community/cli/build/bin.js", "bundle", ...options);
const hermesc = `node_modules/hermes-compiler/hermesc/${FOLDERS[process.platform]}/hermesc`;
run(hermesc, "-O", "-w", "-emit-binary", "-out", `${script}.hbc`, script);
