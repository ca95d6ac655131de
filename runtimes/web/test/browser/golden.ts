/**
 * The golden bundle in Chromium: `node golden.js CHROMIUM THREADS [FOLDER]`; prints the figures as JSON. Another folder has
 * the same files.
 */

import { serve } from "./serve.js";
import { chromium, opened } from "./chromium.js";
import type { Golden } from "./page.js";
import { mounts } from "./mounts.js";

const [path, threads, folder] = process.argv.slice(2) as [string, string, string?];
const server = await serve(
  { ...mounts(), ...(folder === undefined ? {} : { "/golden/": folder }) },
  { isolated: threads !== "1" },
);
const browser = await chromium(path);
try {
  const page = await opened(browser, server.url);
  await page.waitForFunction("window.golden !== undefined");
  const result = (await page.evaluate(`window.golden(${threads})`)) as Golden;
  const size = await page.evaluate("[innerWidth, innerHeight]");
  console.log(JSON.stringify({ ...result, size, version: await browser.version() }));
} finally {
  await browser.close();
  await server.close();
}
