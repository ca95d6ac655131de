/** Questions and answers that the model learns: typed as examples, or corrected by the user. */

import type { Example } from "edgepeft-runtime";

const KEY = "edgepeft:manner";
/** One of so many typed examples is held back, to test the model on what it was not trained on. */
const HELD_BACK = 6;

export interface Turn extends Example {
  /** Whether the user corrected an answer of the model. A correction is always learned. */
  readonly corrected: boolean;
}

export function load(): Turn[] {
  return JSON.parse(localStorage.getItem(KEY) ?? "[]") as Turn[];
}

/** @throws DOMException the storage is full. */
export function store(turns: readonly Turn[]): void {
  localStorage.setItem(KEY, JSON.stringify(turns));
}

/** Returns the turns with a correction, which replaces what was there for the same question. */
export function withCorrection(turns: readonly Turn[], prompt: string, answer: string): Turn[] {
  return [...turns.filter((turn) => turn.prompt !== prompt), { prompt, answer, corrected: true }];
}

/** For each turn, whether it is held back. */
export function heldBack(turns: readonly Turn[]): boolean[] {
  let typed = 0;
  return turns.map(({ corrected }) => !corrected && ++typed % HELD_BACK === 0);
}
