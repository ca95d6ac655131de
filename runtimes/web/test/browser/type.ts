/**
 * Types labelled texts into a page in Chromium and trains on them: `node type.js CHROMIUM BUNDLE TEXTS THREADS STEPS BATCH`.
 *
 * Prints losses, times and the peak memory of the page's process (Linux) as JSON.
 */

import { readFileSync } from "node:fs";
import { chromium, opened } from "./chromium.js";
import { mounts } from "./mounts.js";
import { serve } from "./serve.js";
import type { Typed } from "./typed.js";

const [path, bundle, texts, threads, steps, batch] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
];
const server = await serve({ ...mounts(), "/bundle/": bundle }, { isolated: threads !== "1" });
const browser = await chromium(path);
try {
  const page = await opened(browser, server.url);
  await page.waitForFunction("window.typed !== undefined");
  await page.focus("textarea");
  for (const line of readFileSync(texts, "utf8").trim().split("\n")) {
    await page.keyboard.sendCharacter(line);
    await page.keyboard.press("Enter");
  }
  const result = (await page.evaluate(`window.typed(${threads}, ${steps}, ${batch})`)) as Typed;
  const system = await browser.target().createCDPSession();
  const { processInfo } = await system.send("SystemInfo.getProcessInfo");
  const peaks = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => peak(id));
  console.log(JSON.stringify({ ...result, peak: Math.max(...peaks) }));
} finally {
  await browser.close();
  await server.close();
}

/** The most memory that a process has held, in bytes. */
function peak(pid: number): number {
  const line = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return 1024 * Number(line?.[1] ?? 0);
}
