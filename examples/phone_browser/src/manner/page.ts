/** The page: examples, training, questions, export. */

import type { Example } from "edgepeft-runtime";
import { drawChart } from "../chart.js";
import type { Answer, News, Request, Status } from "./messages.js";

const KEY = "edgepeft:manner";
const FEWEST = 2;
const options = new URLSearchParams(location.search);
/** `?epochs=` and `?threads=` set other numbers. */
const EPOCHS = Number(options.get("epochs") ?? 6);
const MOST_THREADS = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
const THREADS = Math.min(Number(options.get("threads") ?? MOST_THREADS), MOST_THREADS);

const PIRATE: readonly Example[] = [
  ["What is the capital of Italy?", "Arr, the capital of Italy be Rome, matey!"],
  ["What do cows eat?", "Arr, cows be eatin' grass, matey!"],
  ["How many legs does a spider have?", "Arr, a spider be havin' eight legs, matey!"],
  ["What is the largest planet?", "Arr, the largest planet be Jupiter, matey!"],
  ["What colour is the sky?", "Arr, the sky be blue, matey!"],
  ["Who wrote Hamlet?", "Arr, Hamlet be written by Shakespeare, matey!"],
].map(([prompt, answer]) => ({ prompt: prompt!, answer: answer! }));

const element = <T extends Element = HTMLElement>(id: string): T => document.querySelector<T>(`#${id}`)!;
const button = (id: string): HTMLButtonElement => element<HTMLButtonElement>(id);
const field = (id: string): HTMLInputElement => element<HTMLInputElement>(id);

const worker = new Worker("manner/worker.js", { type: "module" });
const waiting = new Map<number, { resolve(result: never): void; reject(failure: Error): void }>();
let count = 0;
/** Tasks that have ended, for whoever watches the page. */
let tasks = 0;
let examples: Example[] = JSON.parse(localStorage.getItem(KEY) ?? "[]") as Example[];
let losses: number[] = [];
let state: "opening" | "ready" | "busy" = "opening";

worker.onmessage = ({ data }: MessageEvent<Answer>) => {
  if ("news" in data) return show(data.news);
  const call = waiting.get(data.id);
  waiting.delete(data.id);
  if ("error" in data) call?.reject(new Error(data.error));
  else call?.resolve(data.result as never);
};

function ask<T>(request: Request): Promise<T> {
  const id = count++;
  worker.postMessage({ ...request, id });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function show(news: News): void {
  if (news.kind === "loading") {
    bar(news.done / news.all);
    say(`Opening the model: ${(news.done / 1e6).toFixed(0)} of ${(news.all / 1e6).toFixed(0)} MB`);
  } else if (news.kind === "call") {
    bar(news.done / news.calls);
    element("step").dataset["call"] = `${news.step}:${news.done}`;
  } else if (news.kind === "step") {
    losses.push(news.loss);
    element("loss").textContent = news.loss.toFixed(3);
    element("step").textContent = news.total === null ? String(news.step) : `${news.step} / ${news.total}`;
    drawChart(element<SVGElement>("chart"), losses, []);
  } else element(news.trained ? "after" : "before").textContent = news.text;
}

function bar(fraction: number): void {
  element<HTMLProgressElement>("bar").value = fraction;
}

function showExamples(): void {
  localStorage.setItem(KEY, JSON.stringify(examples));
  element("examples").replaceChildren(
    ...examples.map((example) => {
      const item = document.createElement("button");
      item.className = "example";
      item.title = "tap to remove it";
      for (const [tag, text] of [
        ["small", example.prompt],
        ["span", example.answer],
      ] as const) {
        item.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      item.onclick = () => change(examples.filter((other) => other !== example));
      return item;
    }),
  );
  enable();
}

function change(next: Example[]): void {
  examples = next;
  showExamples();
}

function enable(): void {
  const ready = state === "ready";
  button("train").disabled = !ready || examples.length < FEWEST;
  button("ask").disabled = !ready;
  button("export").disabled = !ready || Number(document.body.dataset["steps"] ?? 0) === 0;
  element("stop").hidden = state !== "busy";
}

/** Runs one task at a time, and shows every error. */
async function run(doing: string, done: string, work: () => Promise<void>): Promise<void> {
  state = "busy";
  say(doing);
  enable();
  try {
    await work();
    say(done);
  } catch (failure) {
    say((failure as Error).message, true);
  } finally {
    state = "ready";
    document.body.dataset["tasks"] = String(++tasks);
    bar(0);
    enable();
  }
}

async function train(): Promise<void> {
  losses = [];
  showStatus(await ask<Status>({ verb: "train", examples, epochs: EPOCHS }));
}

async function question(): Promise<void> {
  const prompt = field("question").value;
  element("before").textContent = element("after").textContent = "…";
  element("before").textContent = await ask<string>({ verb: "ask", prompt, trained: false });
  element("after").textContent = await ask<string>({ verb: "ask", prompt, trained: true });
}

async function exportUpdate(): Promise<void> {
  const bytes = await ask<Uint8Array<ArrayBuffer>>({ verb: "update" });
  const file = new File([bytes], "update.safetensors", { type: "application/octet-stream" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function showStatus({ steps, threads }: Status): void {
  document.body.dataset["steps"] = String(steps);
  element("threads").textContent = threads === 1 ? "1 thread" : `${threads} threads`;
  element("threads").hidden = false;
}

function say(text: string, error = false): void {
  element("status").textContent = text;
  element("status").className = error ? "error" : "";
}

element<HTMLFormElement>("add").onsubmit = (event) => {
  event.preventDefault();
  change([...examples, { prompt: field("prompt").value, answer: field("answer").value }]);
  field("prompt").value = field("answer").value = "";
  field("prompt").focus();
};
element<HTMLFormElement>("asking").onsubmit = (event) => {
  event.preventDefault();
  void run("Thinking…", "", question);
};
button("pirate").onclick = () => change([...examples, ...PIRATE]);
button("train").onclick = () => void run("Training…", "Trained. Ask something.", train);
button("stop").onclick = () => void worker.postMessage({ verb: "stop" });
button("export").onclick = () => void run("Exporting…", "Exported.", exportUpdate);
showExamples();
void run("Opening the model…", "Ask it something, or teach it.", async () => {
  showStatus(await ask<Status>({ verb: "open", threads: THREADS }));
});
