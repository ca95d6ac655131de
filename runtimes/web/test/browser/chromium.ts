/** A headless Chromium with the window of a phone. */

import { type Browser, type Page, launch } from "puppeteer-core";

export const PHONE = { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

/** @param options `profile`: a folder that keeps what pages store, else nothing outlives the browser; `flags`: further ones. */
export function chromium(
  executablePath: string,
  { profile, flags = [] }: { readonly profile?: string; readonly flags?: readonly string[] } = {},
): Promise<Browser> {
  return launch({
    executablePath,
    headless: "shell",
    // In a container there is neither a sandbox to be had nor a large /dev/shm.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--enable-precise-memory-info", ...flags],
    defaultViewport: PHONE,
    protocolTimeout: 600_000,
    ...(profile === undefined ? {} : { userDataDir: profile }),
  });
}

/** A page at `url`; what goes wrong in it is written to standard error, and its console unless it is `quiet`. */
export async function opened(browser: Browser, url: string, { quiet = false } = {}): Promise<Page> {
  const page = await browser.newPage();
  page.on("pageerror", (failure) => console.error(`page: ${String(failure)}`));
  page.on("console", (message) => {
    if (!quiet && ["error", "warn"].includes(message.type())) console.error(`console: ${message.text()}`);
  });
  await page.goto(url, { waitUntil: "load" });
  return page;
}
