/** The page: drawing, training, comparing, exporting. */

import { drawChart } from "./chart.js";
import { type Drawing, SIDE, drawFitted, heldBack, load, pixelsOf, store } from "./drawing.js";
import type { Examples, Guesses, Progress, Status } from "./messages.js";
import { Model } from "./model.js";
import { Pad } from "./pad.js";

const CLASSES = 10;
const FEWEST = 4;
/** `?epochs=` sets another number, to train longer. */
const EPOCHS = Number(new URLSearchParams(location.search).get("epochs") ?? 60);

const element = <T extends Element = HTMLElement>(id: string): T => document.querySelector<T>(`#${id}`)!;
const button = (id: string): HTMLButtonElement => element<HTMLButtonElement>(id);
const percent = (share: number): string => `${Math.round(100 * share)} %`;

let drawings: Drawing[] = [];
let label = 0;
let losses: number[] = [];
let training = false;
let ready = false;

const model = new Model(showProgress);
const pad = new Pad(element<HTMLCanvasElement>("pad"), padChanged);

function padChanged(): void {
  const empty = pad.strokes.length === 0;
  element("hint").hidden = !empty;
  element("clear").hidden = empty;
  button("keep").disabled = empty;
  if (!empty) run(guess);
}

async function guess(): Promise<void> {
  if (!ready || pad.strokes.length === 0) return;
  const image = pixelsOf(pad.strokes);
  const { before, after } = await model.ask<Guesses>({ verb: "predict", image });
  showGuess("before", before);
  showGuess("after", after);
}

function showGuess(id: string, shares: readonly number[]): void {
  const best = shares.indexOf(Math.max(...shares));
  element(id).innerHTML = `${best}<small>${percent(shares[best]!)}</small>`;
  element(`${id}-bars`).innerHTML = shares
    .map((share, i) => `<span class="${i === best ? "top" : ""}"><i style="height:${70 * share}%"></i>${i}</span>`)
    .join("");
}

function showLabels(): void {
  const counts = Array.from({ length: CLASSES }, (_, i) => drawings.filter((drawing) => drawing.label === i).length);
  element("labels").replaceChildren(
    ...counts.map((count, i) => {
      const chip = document.createElement("button");
      chip.setAttribute("role", "radio");
      chip.setAttribute("aria-checked", String(i === label));
      chip.innerHTML = `${i}${count > 0 ? `<small>${count}</small>` : ""}`;
      chip.onclick = () => {
        label = i;
        showLabels();
      };
      return chip;
    }),
  );
  element("keep-label").textContent = element("hint-label").textContent = String(label);
}

function showDrawings(): void {
  const held = heldBack(drawings);
  element("drawings").replaceChildren(
    ...drawings.map((drawing, i) => {
      const tile = document.createElement("button");
      tile.className = held[i] ? "held-back" : "";
      tile.title = held[i] ? "held back to test the model" : "trained on";
      tile.append(thumbnail(drawing));
      tile.insertAdjacentHTML("beforeend", `<small>${drawing.label}</small>`);
      tile.onclick = () => change(drawings.filter((other) => other !== drawing));
      return tile;
    }),
  );
  const count = held.filter(Boolean).length;
  const back = count > 0 ? `, ${count} of them held back to test the model` : "";
  if (ready && !training)
    say(drawings.length < FEWEST ? "Keep a few drawings of each sign first." : `${drawings.length} drawings${back}`);
  button("train").disabled = !ready || training || drawings.length - count < FEWEST;
}

function thumbnail({ strokes }: Drawing): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 96;
  const pen = canvas.getContext("2d")!;
  pen.translate(12, 8);
  drawFitted(pen, strokes, 68, 7, getComputedStyle(document.body).color);
  return canvas;
}

function change(next: Drawing[]): void {
  drawings = next;
  run(() => store(drawings));
  // Other drawings begin a run of their own.
  button("train").textContent = "Train";
  showLabels();
  showDrawings();
}

function examples(which: readonly Drawing[]): Examples {
  const image = new Float32Array(which.length * SIDE * SIDE);
  which.forEach(({ strokes }, i) => image.set(pixelsOf(strokes), i * SIDE * SIDE));
  return { image, labels: which.map((drawing) => drawing.label) };
}

async function train(): Promise<void> {
  const held = heldBack(drawings);
  training = true;
  losses = [];
  button("train").disabled = true;
  say("Training…");
  try {
    const status = await model.ask<Status>({
      verb: "train",
      train: examples(drawings.filter((_, i) => !held[i])),
      test: examples(drawings.filter((_, i) => held[i])),
      epochs: EPOCHS,
    });
    showStatus(status);
    await guess();
  } finally {
    training = false;
    showDrawings();
  }
  say("Trained. Draw a sign and compare.");
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
  if (accuracies.length > 0) showAccuracy(accuracies);
}

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
  if (!confirm("Forget all drawings and what was learned from them?")) return;
  showStatus(await model.ask<Status>({ verb: "forget" }));
  losses = [];
  element<SVGElement>("chart").replaceChildren();
  for (const id of ["loss", "accuracy", "step"]) element(id).textContent = "–";
  pad.clear();
  change([]);
}

function say(text: string, error = false): void {
  element("status").textContent = text;
  element("status").className = error ? "error" : "";
}

/** Show every error, wherever it happens. */
function run(work: () => Promise<void>): void {
  work().catch((failure: Error) => say(failure.message, true));
}

async function begin(): Promise<void> {
  drawings = await load();
  showLabels();
  showStatus(await model.ask<Status>({ verb: "open" }));
  ready = true;
  showDrawings();
  await guess();
  if (!("serviceWorker" in navigator)) return;
  await navigator.serviceWorker.register("service.js");
  await navigator.serviceWorker.ready;
  element("offline").hidden = false;
}

element("clear").onclick = () => pad.clear();
element("keep").onclick = () => {
  change([...drawings, { strokes: pad.strokes, label }]);
  pad.clear();
};
element("train").onclick = () => run(train);
element("export").onclick = () => run(exportUpdate);
element("forget").onclick = () => run(forget);
run(begin);
