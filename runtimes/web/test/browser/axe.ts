/** What axe finds on a page, in the light and in the dark theme. */

import { createRequire } from "node:module";
import type { Page } from "puppeteer-core";

export async function findings(page: Page): Promise<string[]> {
  if (!(await page.evaluate("'axe' in window"))) {
    await page.addScriptTag({ path: createRequire(import.meta.url).resolve("axe-core/axe.min.js") });
  }
  const found: string[] = [];
  for (const value of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
    const { violations } = (await page.evaluate("axe.run()")) as {
      violations: { id: string; nodes: { html: string }[] }[];
    };
    found.push(...violations.map(({ id, nodes }) => `${value}: ${id}: ${nodes[0]!.html}`));
  }
  await page.emulateMediaFeatures([]);
  return found;
}
