/** The page: questions, corrections, examples, training, export, delivery. */

import type { Delivered, Example } from "edgepeft-runtime";
import { drawChart } from "../chart.js";
import { messageOf } from "../failures.js";
import { Panel } from "../fleet/panel.js";
import { keepOffline } from "../offline.js";
import type { Answer, News, Request, Status } from "./messages.js";
import { type Turn, heldBack, load, store, withCorrection } from "./turns.js";

/** A single correction is repeated until it has had so many steps. */
const LEAST_STEPS = 12;
const BATCH = 2;
const options = new URLSearchParams(location.search);
/** `?epochs=` and `?threads=` set other numbers. */
const EPOCHS = Number(options.get("epochs") ?? 6);
const MOST_THREADS = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
const THREADS = Math.min(Number(options.get("threads") ?? MOST_THREADS), MOST_THREADS);

const PIRATE: readonly Turn[] = [
  ["What is the capital of Italy?", "Arr, the capital of Italy be Rome, matey!"],
  ["What do cows eat?", "Arr, cows be eatin' grass, matey!"],
  ["How many legs does a spider have?", "Arr, a spider be havin' eight legs, matey!"],
  ["What is the largest planet?", "Arr, the largest planet be Jupiter, matey!"],
  ["What colour is the sky?", "Arr, the sky be blue, matey!"],
  ["Who wrote Hamlet?", "Arr, Hamlet be written by Shakespeare, matey!"],
].map(([prompt, answer]) => ({ prompt: prompt!, answer: answer!, corrected: false }));

const element = <T extends Element = HTMLElement>(id: string): T => document.querySelector<T>(`#${id}`)!;
const button = (id: string): HTMLButtonElement => element<HTMLButtonElement>(id);
const field = (id: string): HTMLInputElement => element<HTMLInputElement>(id);

const worker = new Worker("manner/worker.js", { type: "module" });
const waiting = new Map<number, { resolve(result: never): void; reject(failure: Error): void }>();
const panel = new Panel(element("fleet"), element("promise"), () => {
  return ask<Delivered>({ verb: "deliver", example: turns[0] ?? PIRATE[0]! });
});
let count = 0;
/** Tasks that have ended, for whoever watches the page. */
let tasks = 0;
let turns: Turn[] = load();
/** The question that was answered last. */
let asked = "";
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
    if (!("steps" in document.body.dataset))
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

function showTurns(): void {
  const held = heldBack(turns);
  element("examples").replaceChildren(
    ...turns.map((turn, i) => {
      const item = document.createElement("button");
      item.className = `example ${held[i] ? "held-back" : ""}`;
      item.title = `Remove this ${turn.corrected ? "correction" : "example"}`;
      const mark = held[i] ? " (held back to test the model)" : turn.corrected ? " (corrected)" : "";
      for (const [tag, text] of [
        ["small", turn.prompt + mark],
        ["span", turn.answer],
      ] as const) {
        item.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      item.onclick = () => change(turns.filter((other) => other !== turn));
      return item;
    }),
  );
  enable();
}

function change(next: Turn[]): void {
  turns = next;
  showTurns();
  try {
    store(turns);
  } catch (failure) {
    say(messageOf(failure), true);
  }
}

function enable(): void {
  const ready = state === "ready";
  const learned = Number(document.body.dataset["steps"] ?? 0) > 0;
  button("train").disabled = !ready || turns.length === 0;
  for (const id of ["ask", "teach", "forget"]) button(id).disabled = !ready;
  button("export").disabled = !ready || !learned;
  button("correct").hidden = asked === "" || !element("correcting").hidden;
  button("correct").disabled = !ready;
  element("stop").hidden = state !== "busy";
  panel.enable(ready && learned);
}

/** Runs one task at a time, and shows every error. */
async function run(doing: string, done: string, work: () => Promise<string | null | void>): Promise<void> {
  state = "busy";
  say(doing);
  enable();
  try {
    const note = await work();
    say([done, note].filter(Boolean).join(" "));
  } catch (failure) {
    say(messageOf(failure), true);
  } finally {
    state = "ready";
    document.body.dataset["tasks"] = String(++tasks);
    bar(0);
    enable();
  }
}

async function train(): Promise<string | null> {
  losses = [];
  const held = heldBack(turns);
  const part = (wanted: boolean): Example[] => {
    return turns.flatMap(({ prompt, answer }, i) => (held[i] === wanted ? [{ prompt, answer }] : []));
  };
  const examples = part(false);
  const epochs = options.has("epochs")
    ? EPOCHS
    : Math.max(EPOCHS, Math.ceil(LEAST_STEPS / Math.ceil(examples.length / BATCH)));
  const status = await ask<Status>({ verb: "train", examples, heldBack: part(true), epochs });
  showStatus(status);
  return status.note;
}

async function question(): Promise<void> {
  const prompt = field("question").value;
  asked = "";
  element("before").textContent = element("after").textContent = "…";
  element("before").textContent = await ask<string>({ verb: "ask", prompt, trained: false });
  element("after").textContent = await ask<string>({ verb: "ask", prompt, trained: true });
  asked = prompt;
}

/** Learns an answer as the user wrote it, and answers the question again. */
async function teach(): Promise<string | null> {
  change(withCorrection(turns, asked, field("correction").value));
  const note = await train();
  element("after").textContent = "…";
  element("after").textContent = await ask<string>({ verb: "ask", prompt: asked, trained: true });
  return note;
}

function edit(open: boolean): void {
  element("correcting").hidden = !open;
  enable();
  if (!open) return button("correct").focus();
  field("correction").value = element("after").textContent ?? "";
  field("correction").focus();
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

function showStatus({ steps, threads, heldBack: losses }: Status): void {
  document.body.dataset["steps"] = String(steps);
  element("threads").textContent = threads === 1 ? "1 thread" : `${threads} threads`;
  element("threads").hidden = false;
  element("held").textContent = losses === null ? "–" : losses.map((loss) => loss.toFixed(2)).join(" → ");
}

function say(text: string, error = false): void {
  element("status").textContent = text;
  element("status").className = error ? "error" : "";
}

element<HTMLFormElement>("add").onsubmit = (event) => {
  event.preventDefault();
  change([...turns, { prompt: field("prompt").value, answer: field("answer").value, corrected: false }]);
  field("prompt").value = field("answer").value = "";
  field("prompt").focus();
};
element<HTMLFormElement>("asking").onsubmit = (event) => {
  event.preventDefault();
  element("correcting").hidden = true;
  void run("Thinking…", "", question);
};
element<HTMLFormElement>("correcting").onsubmit = (event) => {
  event.preventDefault();
  edit(false);
  void run("Learning…", "Learned. Ask something similar.", teach);
};
element("correcting").onkeydown = ({ key }) => {
  if (key === "Escape") edit(false);
};
button("correct").onclick = () => edit(true);
button("cancel").onclick = () => edit(false);
button("pirate").onclick = () => change([...turns, ...PIRATE]);
button("train").onclick = () => void run("Training…", "Trained. Ask something.", train);
button("stop").onclick = () => void worker.postMessage({ verb: "stop" });
button("export").onclick = () => void run("Exporting…", "Exported.", exportUpdate);
button("forget").onclick = () => {
  if (!confirm("Forget these examples, and what was learned from them?")) return;
  change([]);
  void run("Forgetting…", "Forgotten.", async () => showStatus(await ask<Status>({ verb: "forget" })));
};
showTurns();
void panel.open();
void keepOffline(element("offline"));
void run("Opening the model…", "Ask it something, and correct its answer.", async () => {
  showStatus(await ask<Status>({ verb: "open", threads: THREADS }));
});
