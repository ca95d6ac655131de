/** The packages of the runtime import downwards, and no module imports itself by way of others. */

import assert from "node:assert/strict";
import { readFile, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { it } from "node:test";
import { fileURLToPath } from "node:url";

const SOURCE = fileURLToPath(new URL("../../src", import.meta.url));
const LAYERS = ["files", "bundle", "data", "engine", "train"];
const IMPORT = /from "(\.[^"]+)\.js"/g;

/** The imports of each module, types included, by paths from `src` without their endings. */
async function imports(): Promise<Map<string, string[]>> {
  const files = (await readdir(SOURCE, { recursive: true })).filter((file) => file.endsWith(".ts"));
  const entries = files.map(async (file) => {
    const text = await readFile(join(SOURCE, file), "utf8");
    return [file.slice(0, -3), [...text.matchAll(IMPORT)].map(([, path]) => join(dirname(file), path!))] as const;
  });
  return new Map((await Promise.all(entries)).map(([module, others]) => [module, [...others]]));
}

it("packages import packages below them", async () => {
  const rank = (module: string): number => LAYERS.indexOf(dirname(module));
  for (const [module, others] of await imports()) {
    const upwards = others.filter((other) => rank(module) >= 0 && rank(other) > rank(module));
    assert.deepEqual(upwards, [], `${module} imports upwards`);
  }
});

it("modules import each other in no circle", async () => {
  const graph = await imports();
  assert.ok(graph.get("train/trainer")?.includes("train/session"));
  const done = new Set<string>();
  const visit = (module: string, path: readonly string[]): void => {
    assert.ok(!path.includes(module), `a circle: ${[...path, module].join(" -> ")}`);
    if (done.has(module)) return;
    for (const other of graph.get(module) ?? []) visit(other, [...path, module]);
    done.add(module);
  };
  for (const module of graph.keys()) visit(module, []);
});
