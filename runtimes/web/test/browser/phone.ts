/**
 * Uses the phone page as a person would: `node phone.js CHROMIUM PAGE WORK`.
 *
 * Draws, trains, compares, exports, goes offline; then, in a second browser, is killed while it trains. Pictures and the
 * update are left in the folder WORK; what was seen is printed as JSON.
 */

import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "puppeteer-core";
import { chromium, opened } from "./chromium.js";
import { serve } from "./serve.js";

type Point = readonly [number, number];

/** Signs that no digit looks like, in a square of 1; each stands for its place in the list. */
const SIGNS: readonly (readonly Point[])[] = [
  [
    [0.5, 0],
    [0, 1],
    [1, 1],
    [0.5, 0],
  ],
  [
    [0, 0],
    [1, 1],
    [0.5, 0.5],
    [1, 0],
    [0, 1],
  ],
  [
    [0, 0],
    [1, 0],
    [1, 1],
    [0, 1],
    [0, 0],
  ],
  [
    [0, 0.2],
    [0.25, 0.8],
    [0.5, 0.2],
    [0.75, 0.8],
    [1, 0.2],
  ],
];
const EACH = 12;

/** Numbers from 0 to 1 that are the same in each run. */
function* drawn(seed: number): Generator<number> {
  for (;;) yield (seed = (seed * 48271) % 2147483647) / 2147483647;
}
const draws = drawn(7);
const random = (): number => draws.next().value as number;

/** Draws a sign with a finger: moved, stretched and shaken a little. */
async function draw(page: Page, sign: number): Promise<void> {
  const box = (await (await page.$("#pad"))!.boundingBox())!;
  const [wide, high] = [90 + 60 * random(), 90 + 60 * random()];
  const [left, top] = [(box.width - wide) * (0.2 + 0.6 * random()), (box.height - high) * (0.2 + 0.6 * random())];
  const corners = SIGNS[sign]!.map(([x, y]): Point => {
    return [box.x + left + wide * (x + 0.12 * (random() - 0.5)), box.y + top + high * (y + 0.12 * (random() - 0.5))];
  });
  await page.touchscreen.touchStart(...corners[0]!);
  for (const [i, [x, y]] of corners.entries()) {
    const [fromX, fromY] = corners[Math.max(i - 1, 0)]!;
    await page.touchscreen.touchMove((fromX + x) / 2, (fromY + y) / 2);
    await page.touchscreen.touchMove(x, y);
  }
  await page.touchscreen.touchEnd();
}

async function keep(page: Page, sign: number, count: number): Promise<void> {
  await page.locator(`#labels button:nth-child(${sign + 1})`).click();
  for (let i = 0; i < count; i++) {
    await draw(page, sign);
    await page.locator("#keep:enabled").click();
  }
}

const text = (page: Page, id: string): Promise<string> => page.$eval(`#${id}`, (found) => found.textContent ?? "");
const steps = (page: Page): Promise<number> => page.$eval("body", (body) => Number(body.dataset["steps"]));
const ready = (page: Page): Promise<unknown> => page.waitForFunction("document.body.dataset.steps !== undefined");
const trained = (page: Page): Promise<unknown> =>
  page.waitForFunction("document.querySelector('#status').textContent.startsWith('Trained')", { timeout: 120_000 });

async function wholeWay(browser: Browser, url: string, work: string, goOffline: () => Promise<void>): Promise<object> {
  const page = await opened(browser, `${url}?epochs=150`);
  await ready(page);
  for (const sign of SIGNS.keys()) await keep(page, sign, EACH);
  await draw(page, 1);
  await page.waitForFunction("document.querySelector('#before').textContent.includes('%')");
  await page.screenshot({ path: join(work, "drawing.png") });
  await page.locator("#train:enabled").click();
  await page.waitForFunction("document.querySelector('#step').textContent.includes('/')");
  await page.screenshot({ path: join(work, "training.png"), fullPage: true });
  await page.locator("#clear").click();
  const before = await page.$eval("#after-bars", (bars) => bars.innerHTML);
  await draw(page, 3);
  await page.waitForFunction((old) => document.querySelector("#after-bars")!.innerHTML !== old, {}, before);
  const alive = (await text(page, "status")).startsWith("Training");
  await trained(page);
  const guesses = [];
  for (const sign of SIGNS.keys()) {
    await page.locator("#clear").click();
    await draw(page, sign);
    await new Promise((resolve) => setTimeout(resolve, 300));
    guesses.push([await text(page, "before"), await text(page, "after")].map((guess) => Number(guess[0])));
  }
  await page.screenshot({ path: join(work, "trained.png") });
  await page.screenshot({ path: join(work, "whole.png"), fullPage: true });
  await (
    await browser.target().createCDPSession()
  ).send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: work });
  await page.locator("#export:enabled").click();
  while (!existsSync(join(work, "update.safetensors"))) await new Promise((resolve) => setTimeout(resolve, 50));
  await page.waitForFunction("!document.querySelector('#offline').hidden", { timeout: 60_000 });
  await goOffline();
  await page.reload();
  await ready(page);
  const offline = { steps: await steps(page), status: await text(page, "status") };
  await page.evaluate("scrollTo(0, 0)");
  await draw(page, 2);
  await page.waitForFunction("document.querySelector('#after').textContent.includes('%')");
  const accuracy = await text(page, "accuracy");
  return { guesses, alive, offline: { ...offline, guess: Number((await text(page, "after"))[0]) }, accuracy };
}

/** Kills the browser while it trains, and looks what a new one finds. */
async function killed(path: string, url: string, work: string): Promise<object> {
  const long = `${url}?epochs=20000`;
  const profile = join(work, "profile");
  const first = await chromium(path, { profile });
  const page = await opened(first, long);
  await ready(page);
  for (const sign of SIGNS.keys()) await keep(page, sign, 3);
  await page.locator("#train:enabled").click();
  await page.waitForFunction("parseInt(document.querySelector('#step').textContent) >= 45");
  const seen = parseInt(await text(page, "step"));
  // The whole group: the command on the path may be a shell script that starts the browser.
  process.kill(-first.process()!.pid!, "SIGKILL");
  const second = await chromium(path, { profile });
  try {
    const again = await opened(second, long);
    await ready(again);
    const found = { steps: await steps(again), button: await text(again, "train") };
    await again.locator("#train:enabled").click();
    await again.waitForFunction("document.querySelector('#step').textContent.includes('/')");
    return { seen, ...found, next: parseInt(await text(again, "step")) };
  } finally {
    await second.close();
  }
}

const [path, folder, work] = process.argv.slice(2) as [string, string, string];
const server = await serve({ "/": folder }, { isolated: false });
const browser = await chromium(path);
try {
  const kill = await killed(path, server.url, work);
  const whole = await wholeWay(browser, server.url, work, () => server.close());
  console.log(JSON.stringify({ ...whole, kill }));
} finally {
  await browser.close();
}
