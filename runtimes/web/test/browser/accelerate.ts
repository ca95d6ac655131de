/** WebGPU in Chromium's software renderer: `node accelerate.js CHROMIUM BUNDLE DATA webgpu|jsep`; prints what was found as JSON. */

import { chromium, opened } from "./chromium.js";
import { mounts } from "./mounts.js";
import { serve } from "./serve.js";

/** Chromium's WebGPU on SwiftShader, which needs no GPU. */
const SOFTWARE = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

const [path, bundle, data, name] = process.argv.slice(2) as [string, string, string, string];
const server = await serve({ ...mounts(), "/bundle/": bundle, "/data/": data });
const browser = await chromium(path, { flags: SOFTWARE });
try {
  // Each kernel that fails is an error on the console, hundreds of times.
  const page = await opened(browser, server.url, { quiet: true });
  await page.waitForFunction("window.accelerated !== undefined");
  console.log(JSON.stringify(await page.evaluate(`window.accelerated("${name}")`)));
} finally {
  await browser.close();
  await server.close();
}
