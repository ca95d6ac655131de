/**
 * Uses the phone page as a person would: `node phone.js CHROMIUM PAGE WORK PORT`.
 *
 * Draws, trains, compares, exports, delivers; uses photos and sentences by keys; runs axe in both themes; goes offline; then, in a
 * second browser, is killed while it trains. WORK contains photos in a folder per word, sentences in `sentences.json`, a link in `link.txt` and the bundle
 * `sentences`; pictures and the update are left there. What was seen is printed as JSON.
 */

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "puppeteer-core";
import { findings } from "./axe.js";
import { chromium, opened } from "./chromium.js";
import { serve } from "./serve.js";

type Point = readonly [number, number];

/** Signs that no digit looks like, in a square of 1, for each word. */
const WORDS = ["tent", "hourglass", "box", "wave"] as const;
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
  await page.$eval("#pad", (pad) => pad.scrollIntoView({ block: "center" }));
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
  await page.locator(`#words button:nth-child(${sign + 1})`).click();
  for (let i = 0; i < count; i++) {
    await draw(page, sign);
    await page.locator("#keep:enabled").click();
  }
}

async function addWord(page: Page, word: string): Promise<void> {
  await page.focus("#word");
  await page.keyboard.type(word);
  await page.keyboard.press("Enter");
  await page.waitForFunction(
    (name) => document.querySelector("#words [aria-checked=true]")?.textContent === name,
    {},
    word,
  );
}

const LONGEST = { timeout: 300_000 };
const text = (page: Page, id: string): Promise<string> => page.$eval(`#${id}`, (found) => found.textContent ?? "");
const steps = (page: Page): Promise<number> => page.$eval("body", (body) => Number(body.dataset["steps"]));
const ready = (page: Page): Promise<unknown> =>
  page.waitForFunction("document.body.dataset.steps !== undefined", LONGEST);
const guessed = (page: Page): Promise<unknown> =>
  page.waitForFunction("document.querySelector('#before').textContent !== '·'", LONGEST);

async function train(page: Page): Promise<void> {
  await page.locator("#train:enabled").click();
  await trained(page);
}
async function trained(page: Page): Promise<void> {
  await page.waitForFunction("document.querySelector('#status').textContent.startsWith('Trained')", LONGEST);
}

/** The word that the model says, without its probability. */
const said = (page: Page, id: string): Promise<string> =>
  page.$eval(`#${id}`, (output) => output.firstChild?.textContent ?? "");

async function drawings(page: Page, work: string): Promise<object> {
  for (const word of WORDS) await addWord(page, word);
  for (const sign of SIGNS.keys()) await keep(page, sign, EACH);
  await draw(page, 1);
  await guessed(page);
  const untaught = await text(page, "before");
  await page.screenshot({ path: join(work, "drawing.png") });
  await page.locator("#train:enabled").click();
  await page.waitForFunction("document.querySelector('#step').textContent.includes('/')", LONGEST);
  await page.screenshot({ path: join(work, "training.png"), fullPage: true });
  await trained(page);
  const guesses = [];
  for (const sign of SIGNS.keys()) {
    await page.locator("#clear").click();
    await draw(page, sign);
    await new Promise((resolve) => setTimeout(resolve, 500));
    guesses.push([await said(page, "before"), await said(page, "after")]);
  }
  await page.screenshot({ path: join(work, "trained.png") });
  await page.screenshot({ path: join(work, "whole.png"), fullPage: true });
  const session = await page.browser().target().createCDPSession();
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: work });
  await page.locator("#export:enabled").click();
  while (!existsSync(join(work, "update.safetensors"))) await new Promise((resolve) => setTimeout(resolve, 50));
  return { untaught, guesses, accuracy: await text(page, "accuracy") };
}

/** Chooses the next tab by the keyboard. */
async function nextTab(page: Page): Promise<void> {
  await page.focus('[role=tab][aria-selected="true"]');
  const name = await page.$eval("body", (body) => body.dataset["subject"]!);
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction((old) => document.body.dataset["subject"] !== old, LONGEST, name);
  await ready(page);
}

async function photos(page: Page, work: string): Promise<object> {
  const folder = join(work, "photos");
  const guesses: string[][] = [];
  const choose = async (word: string, name: string): Promise<void> => {
    const file = await page.$("#file");
    await (file as unknown as { uploadFile(path: string): Promise<void> }).uploadFile(join(folder, word, name));
    await page.waitForSelector("#keep:enabled", LONGEST);
  };
  const files = readdirSync(folder)
    .sort()
    .map((word) => [word, readdirSync(join(folder, word)).sort()] as const);
  for (const [word, names] of files) {
    await addWord(page, word);
    for (const name of names.slice(1)) {
      await choose(word, name);
      await page.locator("#keep:enabled").click();
    }
  }
  await train(page);
  for (const [word, names] of files) {
    await choose(word, names[0]!);
    await new Promise((resolve) => setTimeout(resolve, 500));
    guesses.push([word, await said(page, "before"), await said(page, "after")]);
  }
  await page.screenshot({ path: join(work, "photos.png"), fullPage: true });
  await page.locator("#clear").click();
  await page.locator("#snap").click();
  await page.waitForFunction("document.querySelector('#camera').videoWidth > 0", LONGEST);
  await page.locator("#snap").click();
  await page.waitForSelector("#keep:enabled", LONGEST);
  await page.locator("#clear").click();
  return { guesses, accuracy: await text(page, "accuracy") };
}

interface Sentences {
  readonly train: Readonly<Record<string, readonly string[]>>;
  readonly ask: Readonly<Record<string, string>>;
}

async function sentences(page: Page, work: string): Promise<object> {
  const { train: taught, ask } = JSON.parse(readFileSync(join(work, "sentences.json"), "utf8")) as Sentences;
  for (const [word, examples] of Object.entries(taught)) {
    await addWord(page, word);
    for (const example of examples) {
      await page.type("#sentence", example);
      await page.locator("#keep:enabled").click();
    }
  }
  await train(page);
  const guesses = [];
  for (const [word, sentence] of Object.entries(ask)) {
    await page.type("#sentence", sentence);
    await page.waitForFunction("document.querySelector('#after').textContent.length > 1", LONGEST);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    guesses.push([word, await said(page, "before"), await said(page, "after")]);
    await page.locator("#clear").click();
  }
  await page.screenshot({ path: join(work, "sentences.png"), fullPage: true });
  return { guesses };
}

/** Keeps an example where the browser refuses to store it, as it does without room; returns what the page says. */
async function full(page: Page): Promise<string> {
  await page.evaluate(() => {
    IDBObjectStore.prototype.put = () => {
      throw new DOMException("There is no room.", "QuotaExceededError");
    };
  });
  await page.type("#sentence", "There is no room for this.");
  await page.locator("#keep:enabled").click();
  await page.waitForSelector("#status.error", LONGEST);
  return text(page, "status");
}

/** Opens the link of the host of a tab's fleet, and connects by keys. */
async function connect(page: Page, work: string, tab: string, axe: string[]): Promise<void> {
  const { hash } = new URL(readFileSync(join(work, `${tab}.link`), "utf8"));
  await page.evaluate((fragment) => void (location.hash = fragment), hash);
  await page.waitForFunction("document.activeElement.id === 'connect'", LONGEST);
  axe.push(...(await findings(page)));
  await page.screenshot({ path: join(work, `${tab}-invited.png`), fullPage: true });
  await page.keyboard.press("Enter");
}

/** Delivers what was learned. */
async function delivered(page: Page, work: string, tab: string, axe: string[]): Promise<object> {
  await page.locator("#deliver:enabled").click();
  await page.waitForFunction(() => {
    const status = document.querySelector("#fleet-status")!;
    return status.matches(".error") || status.textContent!.startsWith("Delivered");
  }, LONGEST);
  axe.push(...(await findings(page)));
  await page.screenshot({ path: join(work, `${tab}-delivered.png`), fullPage: true });
  return { said: await text(page, "fleet-status"), address: await page.evaluate("location.hash") };
}

async function wholeWay(browser: Browser, url: string, work: string, goOffline: () => Promise<void>): Promise<object> {
  const page = await opened(browser, `${url}?epochs=60`);
  await ready(page);
  const axe = await findings(page);
  const drawn = await drawings(page, work);
  axe.push(...(await findings(page)));
  await connect(page, work, "drawings", axe);
  const delivery = [await delivered(page, work, "drawings", axe)];
  await nextTab(page);
  const photographed = await photos(page, work); // while the page is connected to the host of another model
  axe.push(...(await findings(page)));
  await connect(page, work, "photos", axe);
  delivery.push(await delivered(page, work, "photos", axe));
  await nextTab(page);
  await connect(page, work, "sentences", axe); // this training starts from the adapter of the round
  const typed = await sentences(page, work);
  axe.push(...(await findings(page)));
  delivery.push(await delivered(page, work, "sentences", axe));
  const noRoom = await full(page);
  await page.waitForFunction("!document.querySelector('#offline').hidden", LONGEST);
  await goOffline();
  await page.reload();
  await ready(page);
  const offline = { steps: await steps(page), status: await text(page, "status") };
  await page.evaluate("scrollTo(0, 0)");
  await draw(page, 2);
  await guessed(page);
  const guess = await said(page, "after");
  return {
    ...{ axe, delivery, drawings: drawn, photos: photographed, sentences: typed, full: noRoom },
    offline: { ...offline, guess },
  };
}

/** Kills the browser while it trains, and looks what a new one finds. */
async function killed(path: string, url: string, work: string): Promise<object> {
  const long = `${url}?epochs=20000`;
  const profile = join(work, "profile");
  const first = await chromium(path, { profile });
  const page = await opened(first, long);
  await ready(page);
  for (const word of WORDS) await addWord(page, word);
  for (const sign of SIGNS.keys()) await keep(page, sign, 3);
  await page.locator("#train:enabled").click();
  await page.waitForFunction("parseInt(document.querySelector('#step').textContent) >= 45");
  await draw(page, 3);
  await guessed(page);
  const alive = (await text(page, "status")).startsWith("Training");
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
    return { alive, seen, ...found, next: parseInt(await text(again, "step")) };
  } finally {
    await second.close();
  }
}

const [path, folder, work, port] = process.argv.slice(2) as [string, string, string, string];
const mounts = { "/": folder, "/bundles/sentences/": join(work, "sentences") };
const server = await serve(mounts, { port: Number(port), isolated: false });
/** A camera that sees a test picture, and may be used without a question. */
const CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
const browser = await chromium(path, { flags: CAMERA });
try {
  const kill = await killed(path, server.url, work);
  const whole = await wholeWay(browser, server.url, work, () => server.close());
  console.log(JSON.stringify({ ...whole, kill }));
} finally {
  await browser.close();
}
