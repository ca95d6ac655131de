/** Metro takes the runtime from its TypeScript, and what it imports from this folder. */

const { existsSync } = require("node:fs");
const { dirname, join, resolve } = require("node:path");
const { getDefaultConfig, mergeConfig } = require("@react-native/metro-config");

const RUNTIME = resolve(__dirname, "../../runtimes/web/src");

function resolveRequest(context, name, platform) {
  if (name === "edgepeft-runtime") return { type: "sourceFile", filePath: join(RUNTIME, "index.ts") };
  if (context.originModulePath.startsWith(RUNTIME)) {
    // TypeScript's imports name the JavaScript that a file becomes.
    const source = resolve(dirname(context.originModulePath), name).replace(/\.js$/, ".ts");
    if (name.startsWith(".") && existsSync(source)) return { type: "sourceFile", filePath: source };
    return context.resolveRequest({ ...context, originModulePath: join(__dirname, "App.tsx") }, name, platform);
  }
  return context.resolveRequest(context, name, platform);
}

module.exports = mergeConfig(getDefaultConfig(__dirname), {
  watchFolders: [RUNTIME],
  resolver: { resolveRequest },
});
