/**
 * Corrects an answer on the chat page, asks a similar question, and delivers: `node chat.js CHROMIUM DIST WORK PLAN.json`.
 *
 * Everything is done by keys. Pictures of the states are left in WORK; what was seen is printed as JSON.
 */

import { readFileSync } from "node:fs";
import { type AddressInfo, type Socket, connect, createServer } from "node:net";
import { join } from "node:path";
import type { Page } from "puppeteer-core";
import { findings } from "./axe.js";
import { chromium, opened } from "./chromium.js";
import { serve } from "./serve.js";

interface Plan {
  readonly bundle: string;
  readonly port: number;
  /** The link of a fleet's host; without one nothing is delivered. */
  readonly link?: string;
  readonly threads: number;
  /** Passes over what it learns; the page's own number if it is missing. */
  readonly epochs?: number;
  /** Examples that are typed before, of which the sixth is held back. */
  readonly examples: readonly { readonly prompt: string; readonly answer: string }[];
  readonly question: string;
  readonly correction: string;
  /** Questions to ask afterwards. */
  readonly similar: readonly string[];
}

const LONGEST = { timeout: 1_200_000 };
const text = (page: Page, id: string): Promise<string> => page.$eval(`#${id}`, (found) => found.textContent ?? "");

/** Presses a key on a control, and waits until the task that it starts has ended. */
async function task(page: Page, control: string, key: "Enter" | "Space" = "Enter"): Promise<string> {
  await page.waitForSelector(`${control}:enabled`, LONGEST);
  const before = await page.$eval("body", (body) => Number(body.dataset["tasks"] ?? 0));
  await page.focus(control);
  await page.keyboard.press(key);
  await page.waitForFunction((least) => Number(document.body.dataset["tasks"]) > least, LONGEST, before);
  return text(page, "status");
}

async function press(page: Page, control: string): Promise<void> {
  await page.waitForSelector(`${control}:enabled`, LONGEST);
  await page.focus(control);
  await page.keyboard.press("Enter");
}

async function fill(page: Page, control: string, value: string): Promise<void> {
  await page.$eval(control, (field) => (field as HTMLInputElement).select());
  await page.focus(control);
  await page.keyboard.type(value);
}

async function answers(page: Page, question: string): Promise<{ before: string; after: string }> {
  await fill(page, "#question", question);
  await task(page, "#question");
  return { before: await text(page, "before"), after: await text(page, "after") };
}

async function correct(page: Page, correction: string): Promise<string> {
  await press(page, "#correct");
  await page.waitForFunction("document.activeElement.id === 'correction'");
  await fill(page, "#correction", correction);
  return task(page, "#teach");
}

/** Presses "Deliver", and returns what the card says then. */
async function delivered(page: Page): Promise<string> {
  await press(page, "#deliver");
  await page.waitForFunction(
    "document.querySelector('#deliver:enabled, #connect') && !/^(Delivering…)?$/.test(document.querySelector('#fleet-status').textContent)",
    LONGEST,
  );
  return text(page, "fleet-status");
}

const opening = (page: Page): Promise<unknown> =>
  page.waitForFunction("Number(document.body.dataset.tasks) > 0", LONGEST);

async function wholeWay(page: Page, plan: Plan, work: string, close: () => Promise<void>): Promise<object> {
  const axe: string[] = [];
  const look = async (name: string): Promise<void> => {
    await page.screenshot({ path: join(work, `${name}.png`), fullPage: true });
    axe.push(...(await findings(page)));
  };
  await opening(page);
  const fleet = plan.link !== undefined;
  const hash = await page.evaluate("location.hash");
  if (fleet) {
    await look("chat-invited");
    await press(page, "#connect");
    await page.waitForSelector("#disconnect:not([hidden])");
  }
  for (const { prompt, answer } of plan.examples) {
    await fill(page, "#prompt", prompt);
    await fill(page, "#answer", answer);
    await page.keyboard.press("Enter");
  }
  const first = await answers(page, plan.question);
  await press(page, "#correct");
  await look("chat-correcting");
  await page.keyboard.press("Escape");
  const learned = await correct(page, plan.correction);
  const again = { answer: await text(page, "after"), held: await text(page, "held"), steps: await text(page, "step") };
  await look("chat-learned");
  const similar = [];
  for (const question of plan.similar) similar.push(await answers(page, question));
  if (!fleet) return { axe, hash, first, learned, again, similar };
  const delivery = [await delivered(page), await delivered(page)];
  await look("chat-delivered");
  await page.waitForSelector("#offline:not([hidden])", LONGEST);
  await close();
  await page.setOfflineMode(true);
  await page.reload();
  await opening(page);
  const offline = { ...(await answers(page, plan.question)), delivery: await delivered(page) };
  await look("chat-offline");
  await page.evaluate(() => {
    Storage.prototype.setItem = () => {
      throw new DOMException("There is no room.", "QuotaExceededError");
    };
  });
  await press(page, "#examples .example");
  await page.waitForSelector("#status.error");
  return { axe, hash, first, learned, again, similar, delivery, offline, full: await text(page, "status") };
}

/** A way to a port that can be cut, as the network of a phone. */
async function cable(to: number): Promise<{ readonly port: number; cut(): void }> {
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    const other = connect(to, "127.0.0.1");
    for (const end of [socket, other]) open.add(end.on("error", () => undefined));
    socket.pipe(other).pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = (): void => {
    server.close();
    for (const end of open) end.destroy();
  };
  return { port: (server.address() as AddressInfo).port, cut };
}

/** Returns the fragment of the page, and what cuts the network. */
async function network(link: string | undefined): Promise<{ hash: string; cut(): void }> {
  if (link === undefined) return { hash: "", cut: () => undefined };
  const fields = new URLSearchParams(new URL(link).hash.slice(1));
  const { port, cut } = await cable(Number(new URL(fields.get("server")!).port));
  fields.set("server", `http://127.0.0.1:${port}`);
  return { hash: `#${fields.toString()}`, cut };
}

const [path, dist, work, file] = process.argv.slice(2) as [string, string, string, string];
const plan = JSON.parse(readFileSync(file, "utf8")) as Plan;
const { port, threads } = plan;
const { hash, cut } = await network(plan.link);
const server = await serve({ "/": dist, "/manner_bundle/": plan.bundle }, { port, isolated: threads > 1 });
const browser = await chromium(path);
const offline = async (): Promise<void> => {
  cut();
  await server.close();
};
try {
  const epochs = plan.epochs === undefined ? "" : `&epochs=${plan.epochs}`;
  const url = `${server.url}manner.html?threads=${threads}${epochs}${hash}`;
  const page = await opened(browser, url, { quiet: true });
  console.log(JSON.stringify(await wholeWay(page, plan, work, offline)));
} finally {
  cut();
  await browser.close();
  await server.close();
}
