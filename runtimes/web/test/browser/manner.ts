/**
 * Teaches the page of manners as a person would: `node manner.js CHROMIUM DIST WORK PLAN.json`; prints what was seen as JSON.
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "puppeteer-core";
import { chromium, opened } from "./chromium.js";
import { serve } from "./serve.js";

interface Plan {
  readonly bundle: string;
  readonly threads: number;
  readonly epochs: number;
  readonly examples: readonly { readonly prompt: string; readonly answer: string }[];
  readonly question: string;
  /** Stops the training after this step, and resumes it; 0 does not. */
  readonly stop: number;
}

interface Memory {
  /** Resident memory in bytes: now, what of it is no file, and the most since the measurement before. */
  readonly now: number;
  readonly anonymous: number;
  readonly peak: number;
}

const LONGEST = { timeout: 1_800_000 };
const text = (page: Page, id: string): Promise<string> => page.$eval(`#${id}`, (element) => element.textContent ?? "");
const steps = (page: Page): Promise<number> => page.$eval("body", (body) => Number(body.dataset["steps"]));
/** Clicks a button that is enabled. A pointer's click would wait for frames, which a busy machine draws late. */
async function click(page: Page, button: string): Promise<void> {
  await page.waitForSelector(`${button}:enabled`, LONGEST);
  await page.$eval(button, (element) => (element as HTMLButtonElement).click());
}

/** Does something that starts a task of the page, and waits for the task to end. */
async function task(page: Page, start: () => Promise<void>): Promise<void> {
  const ended = (): Promise<number> => page.$eval("body", (body) => Number(body.dataset["tasks"] ?? 0));
  const before = await ended();
  await start();
  await page.waitForFunction((least) => Number(document.body.dataset["tasks"]) > least, LONGEST, before);
}

async function answers(page: Page, question: string): Promise<{ before: string; after: string }> {
  await page.$eval("#question", (field, value) => ((field as HTMLInputElement).value = value), question);
  await task(page, () => click(page, "#ask"));
  return { before: await text(page, "before"), after: await text(page, "after") };
}

async function trained(page: Page): Promise<string> {
  await task(page, () => click(page, "#train"));
  return withoutError(page, "train");
}

/** Returns what the page says. @throws Error it says that something failed. */
async function withoutError(page: Page, what: string): Promise<string> {
  const [kind, said] = await page.$eval("#status", ({ className, textContent }) => [className, textContent]);
  if (kind === "error") throw new Error(`The page cannot ${what}: ${said}`);
  return said!;
}

async function stopped(page: Page, step: number): Promise<object> {
  await task(page, async () => {
    await click(page, "#train");
    const reached = (least: number): boolean => parseInt(document.querySelector("#step")!.textContent) >= least;
    await page.waitForFunction(reached, LONGEST, step);
    await click(page, "#stop");
  });
  return { status: await text(page, "status"), step: parseInt(await text(page, "step")) };
}

/** The memory of the page's process, which contains its worker (Linux); its peak begins again. */
function memory(pid: number): Memory {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const kB = (name: string): number => 1024 * Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1] ?? 0);
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
  return { now: kB("VmRSS"), anonymous: kB("RssAnon"), peak: kB("VmHWM") };
}

const [path, dist, work, file] = process.argv.slice(2) as [string, string, string, string];
const plan = JSON.parse(readFileSync(file, "utf8")) as Plan;
const server = await serve({ "/": dist, "/manner_bundle/": plan.bundle }, { isolated: plan.threads > 1 });
const browser = await chromium(path);
try {
  const start = performance.now();
  const page = await opened(browser, `${server.url}manner.html?threads=${plan.threads}&epochs=${plan.epochs}`);
  const session = await browser.target().createCDPSession();
  const renderer = async (): Promise<Memory> => {
    const { processInfo } = await session.send("SystemInfo.getProcessInfo");
    const found = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => memory(id));
    return found.reduce((a, b) => (a.peak > b.peak ? a : b));
  };
  await page.waitForFunction("document.body.dataset.tasks === '1'", LONGEST);
  const opening = (performance.now() - start) / 1000;
  await withoutError(page, "open the model");
  const ready = await renderer();
  for (const { prompt, answer } of plan.examples) {
    await page.type("#prompt", prompt);
    await page.type("#answer", answer);
    await click(page, "#add .secondary");
  }
  const untrained = await answers(page, plan.question);
  const [threads, asked] = [await text(page, "threads"), await renderer()];
  const stop = plan.stop > 0 ? await stopped(page, plan.stop) : null;
  const begun = performance.now();
  const status = await trained(page);
  const training = (performance.now() - begun) / 1000;
  const after = await renderer();
  const taught = await answers(page, plan.question);
  await page.evaluate("scrollTo(0, 0)");
  await page.screenshot({ path: join(work, "manner.png"), fullPage: true });
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: work });
  await click(page, "#export");
  while (!existsSync(join(work, "update.safetensors"))) await new Promise((resolve) => setTimeout(resolve, 50));
  const losses = { last: Number(await text(page, "loss")) };
  const count = { steps: await steps(page), shown: await text(page, "step") };
  const [end, seconds] = [await renderer(), { opening, training }];
  console.log(
    JSON.stringify({
      ...{ threads, untrained, stop, status, taught, losses, count, seconds },
      memory: { opened: ready, asked, trained: after, end },
      version: await browser.version(),
    }),
  );
} finally {
  await browser.close();
  await server.close();
}
