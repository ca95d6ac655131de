/** States in Chromium: `node store.js CHROMIUM database|folder`; prints what was found as JSON. */

import { chromium, opened } from "./chromium.js";
import { mounts } from "./mounts.js";
import { serve } from "./serve.js";

const [path, kind] = process.argv.slice(2) as [string, string];
const server = await serve(mounts());
const browser = await chromium(path);
try {
  const page = await opened(browser, server.url);
  await page.waitForFunction("window.stores !== undefined");
  console.log(JSON.stringify(await page.evaluate(`window.stores("${kind}")`)));
} finally {
  await browser.close();
  await server.close();
}
