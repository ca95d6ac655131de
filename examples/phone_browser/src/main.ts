/** The page: a subject is chosen, words and examples are entered, the model trains, and both its versions guess. */

import { drawChart } from "./chart.js";
import { choices, mark } from "./choices.js";
import { messageOf } from "./failures.js";
import type { Delivered } from "edgepeft-runtime";
import { Panel } from "./fleet/panel.js";
import { type Example, Lessons, load, store } from "./lessons.js";
import { type Guesses, type Progress, SUBJECTS, type Status, type SubjectName } from "./messages.js";
import { Model } from "./model.js";
import { keepOffline } from "./offline.js";
import { Drawings } from "./subjects/drawings.js";
import { Photos } from "./subjects/photos.js";
import { Sentences } from "./subjects/sentences.js";
import type { Subject } from "./subjects/subject.js";

/** `?epochs=` sets another number, to train longer. */
const EPOCHS = Number(new URLSearchParams(location.search).get("epochs") ?? 60);
/** Difference between two words' probabilities below which the model prefers neither. */
const EQUAL = 0.01;

const element = <T extends Element = HTMLElement>(id: string): T => document.querySelector<T>(`#${id}`)!;
const button = (id: string): HTMLButtonElement => element<HTMLButtonElement>(id);
const percent = (fraction: number): string => `${Math.round(100 * fraction)} %`;

const photos = new Photos(element("preview"), element("camera"), entered);
const subjects: Readonly<Record<SubjectName, Subject>> = {
  drawings: new Drawings(element("pad"), entered),
  photos,
  sentences: new Sentences(element("sentence"), entered),
};
const model = new Model({
  progress: showProgress,
  // A training opens the model again, with a state of its own.
  loading: (done, all) => {
    if (state === "opening") say(`Opening the model: ${(done / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB`);
  },
});

const panel = new Panel(element("fleet"), element("promise"), () => {
  const inputs = subject.inputs(lessons.examples.slice(0, 1).map(({ content }) => content));
  return model.ask<Delivered>({ verb: "deliver", inputs });
});

let subject: Subject = subjects.drawings;
let lessons = new Lessons();
/** Index of the chosen word; -1 before there is one. */
let word = -1;
let losses: number[] = [];
let state: "opening" | "ready" | "training" | "closed" = "opening";

function entered(): void {
  const empty = subject.current() === null;
  element("hint").hidden = !empty;
  element("clear").hidden = empty;
  enable();
  if (!empty) run(guess);
}

function enable(): void {
  const named = word >= 0;
  button("keep").disabled = subject.current() === null || !named;
  button("keep").textContent = named ? `Keep as “${lessons.words[word]}”` : "Keep";
  button("train").disabled = state !== "ready" || lessons.missing !== null;
  button("forget").disabled = state === "training" || state === "opening";
  panel.enable(state === "ready" && Number(document.body.dataset["steps"] ?? 0) > 0 && lessons.examples.length > 0);
  for (const tab of tabs()) tab.toggleAttribute("disabled", state === "training");
}

async function guess(): Promise<void> {
  const content = subject.current();
  if (content === null || (state !== "ready" && state !== "training") || lessons.named.length === 0) return;
  const { before, after } = await model.ask<Guesses>({ verb: "predict", inputs: subject.inputs([content]) });
  showGuess("before", before);
  showGuess("after", after);
}

/** Shows the probabilities of the words that are there. */
function showGuess(id: string, scores: readonly number[]): void {
  const powers = lessons.named.map(({ index }) => Math.exp(scores[index]! - Math.max(...scores)));
  const sum = powers.reduce((total, power) => total + power, 0);
  const found = lessons.named.map(({ word: name }, i) => ({ name, probability: powers[i]! / sum }));
  const best = found.reduce((a, b) => (b.probability > a.probability ? b : a));
  const knows = found.length > 1 && best.probability - Math.min(...found.map(({ probability }) => probability)) > EQUAL;
  element(id).replaceChildren(knows ? best.name : "?", small(knows ? percent(best.probability) : "does not know"));
  element(`${id}-bars`).replaceChildren(
    ...found.map(({ name, probability }) => {
      const bar = document.createElement("span");
      bar.className = knows && name === best.name ? "top" : "";
      const height = Object.assign(document.createElement("i"), { style: `height:${70 * probability}%` });
      bar.append(height, Object.assign(document.createElement("b"), { textContent: name }));
      return bar;
    }),
  );
}

function small(text: string): HTMLElement {
  return Object.assign(document.createElement("small"), { textContent: text });
}

function showWords(): void {
  const chips = lessons.named.map(({ index, word: name }) => {
    const chip = document.createElement("button");
    chip.setAttribute("role", "radio");
    const count = lessons.count(index);
    chip.append(name, ...(count > 0 ? [small(String(count))] : []));
    return chip;
  });
  element("words").replaceChildren(...chips);
  element("words").hidden = chips.length === 0;
  mark(
    chips,
    "aria-checked",
    lessons.named.findIndex(({ index }) => index === word),
  );
  element("remove").hidden = word < 0;
  element("remove").textContent = word < 0 ? "" : `Remove “${lessons.words[word]}”`;
}

function showExamples(): void {
  const held = lessons.heldBack;
  const tiles = lessons.examples.map((example, i) => {
    const [tile, name] = [document.createElement("button"), lessons.words[example.word]!];
    tile.className = held[i] ? "held-back" : "";
    tile.title = `Remove this example${held[i] ? ", which is held back to test the model" : ""}`;
    tile.append(subject.thumbnail(example.content), small(name));
    tile.onclick = () => change(lessons.withoutExample(example));
    return tile;
  });
  element("examples").replaceChildren(...tiles);
  element("none").hidden = tiles.length > 0;
}

/** Takes over other words or examples. */
function change(next: Lessons): void {
  lessons = next;
  if (word >= 0 && (lessons.words[word] ?? null) === null) word = lessons.named.at(-1)?.index ?? -1;
  const { name } = subject;
  run(() => store(name, next));
  // Other examples begin a run of their own.
  button("train").textContent = "Train";
  showWords();
  showExamples();
  enable();
  if (state === "ready") say(summary());
}

function summary(): string {
  if (lessons.missing !== null) return lessons.missing;
  const held = lessons.heldBack.filter(Boolean).length;
  return `${lessons.examples.length} examples${held > 0 ? `, ${held} of them held back to test the model` : ""}`;
}

async function train(): Promise<void> {
  state = "training";
  losses = [];
  enable();
  say("Training…");
  let note: string | null = null;
  try {
    const [train, test] = [lessons.part(subject, false), lessons.part(subject, true)];
    const status = await model.ask<Status>({ verb: "train", train, test, epochs: EPOCHS });
    ({ note } = status);
    showStatus(status);
  } finally {
    state = "ready";
    enable();
  }
  await guess();
  say(["Trained. Try it, and compare.", note].filter(Boolean).join(" "));
}

function showProgress({ step, total, loss, accuracies }: Progress): void {
  losses.push(loss);
  element("loss").textContent = loss.toFixed(3);
  element("step").textContent = total === null ? String(step) : `${step} / ${total}`;
  showAccuracy(accuracies);
  drawChart(element<SVGElement>("chart"), losses, accuracies);
}

function showAccuracy(accuracies: readonly number[]): void {
  const [first, last] = [accuracies[0], accuracies.at(-1)];
  if (first === undefined || last === undefined) return;
  element("accuracy").textContent = `${Math.round(100 * first)} → ${percent(last)}`;
}

function showStatus({ steps, unfinished, accuracies }: Status): void {
  button("train").textContent = unfinished ? `Resume from step ${steps}` : "Train";
  button("export").disabled = steps === 0;
  document.body.dataset["steps"] = String(steps);
  document.body.dataset["unfinished"] = String(unfinished);
  showAccuracy(accuracies);
}

function clearFigures(): void {
  losses = [];
  element<SVGElement>("chart").replaceChildren();
  for (const id of ["loss", "accuracy", "step"]) element(id).textContent = "–";
  for (const id of ["before", "after"]) {
    element(id).textContent = "·";
    element(`${id}-bars`).replaceChildren();
  }
}

/** Downloads the update. */
async function exportUpdate(): Promise<void> {
  const bytes = await model.ask<Uint8Array<ArrayBuffer>>({ verb: "update" });
  const file = new File([bytes], "update.safetensors", { type: "application/octet-stream" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`Exported ${(bytes.length / 1000).toFixed(1)} kB.`);
}

async function forget(): Promise<void> {
  if (!confirm("Forget these words, their examples, and what was learned from them?")) return;
  showStatus(await model.ask<Status>({ verb: "forget" }));
  clearFigures();
  subject.clear();
  change(new Lessons());
}

function tabs(): HTMLElement[] {
  return SUBJECTS.map((name) => element(`tab-${name}`));
}

/** Shows a subject, and opens its model. */
async function open(name: SubjectName): Promise<void> {
  state = "opening";
  photos.stopCamera();
  subject = subjects[name];
  mark(tabs(), "aria-selected", SUBJECTS.indexOf(name));
  for (const other of SUBJECTS) element(`enter-${other}`).hidden = other !== name;
  element("enter").setAttribute("aria-labelledby", `tab-${name}`);
  document.body.dataset["subject"] = name;
  delete document.body.dataset["steps"];
  clearFigures();
  say("Opening the model…");
  lessons = await load(name);
  word = lessons.named[0]?.index ?? -1;
  showWords();
  showExamples();
  enable();
  try {
    showStatus(await model.ask<Status>({ verb: "open", subject: name }));
    state = "ready";
  } catch (failure) {
    state = "closed";
    throw failure;
  } finally {
    entered();
  }
  say(summary());
}

async function camera(): Promise<void> {
  if (photos.isCameraOn) photos.snap();
  else await photos.startCamera();
  button("snap").textContent = photos.isCameraOn ? "Take a photo" : "Camera";
}

function say(text: string, error = false): void {
  element("status").textContent = text;
  element("status").className = error ? "error" : "";
}

/** Shows every error, wherever it happens. */
function run(work: () => Promise<void>): void {
  work().catch((failure: unknown) => say(messageOf(failure), true));
}

function keep(): void {
  const example: Example = { content: subject.current(), word };
  subject.clear();
  change(lessons.withExample(example));
}

element<HTMLFormElement>("add").onsubmit = (event) => {
  event.preventDefault();
  const field = element<HTMLInputElement>("word");
  run(async () => {
    const [next, index] = lessons.withWord(field.value);
    [word, field.value] = [index, ""];
    change(next);
  });
};
element("remove").onclick = () => {
  const count = lessons.count(word);
  if (count > 0 && !confirm(`Remove “${lessons.words[word]}” and its ${count} examples?`)) return;
  change(lessons.withoutWord(word));
};
choices(element("words"), "aria-checked", (position) => {
  word = lessons.named[position]!.index;
  showWords();
  enable();
});
choices(element("tabs"), "aria-selected", (position) => {
  if (state !== "training" && state !== "opening") run(() => open(SUBJECTS[position]!));
});
element<HTMLInputElement>("file").onchange = ({ target }) => {
  const [file] = (target as HTMLInputElement).files ?? [];
  if (file !== undefined) run(() => photos.choose(file));
};
element("snap").onclick = () => run(camera);
element("clear").onclick = () => subject.clear();
element("keep").onclick = keep;
element("train").onclick = () => run(train);
element("export").onclick = () => run(exportUpdate);
element("forget").onclick = () => run(forget);
run(() => open("drawings"));
run(() => panel.open());
run(() => keepOffline(element("offline")));
