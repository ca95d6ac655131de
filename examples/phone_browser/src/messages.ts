/** The messages between the page and its worker. */

import type { Pixels } from "edgepeft-runtime";

/** What a model is taught with; each has a bundle of its own. */
export const SUBJECTS = ["drawings", "photos", "sentences"] as const;
export type SubjectName = (typeof SUBJECTS)[number];

/** Inputs of a model, one per example: fractions of ink `[examples, 1, side, side]`, photos, or texts. */
export type Inputs =
  | { readonly kind: "ink"; readonly values: Float32Array; readonly side: number }
  | { readonly kind: "photos"; readonly images: readonly Pixels[] }
  | { readonly kind: "texts"; readonly texts: readonly string[] };

export interface Examples {
  readonly inputs: Inputs;
  /** For each example the index of its word. */
  readonly labels: readonly number[];
}

/** One call at a time is answered in order; `train` also sends {@link Progress}. */
export type Request =
  | { readonly verb: "open"; readonly subject: SubjectName }
  | { readonly verb: "train"; readonly train: Examples; readonly test: Examples; readonly epochs: number }
  | { readonly verb: "predict"; readonly inputs: Inputs }
  | { readonly verb: "update" }
  | { readonly verb: "deliver"; readonly inputs: Inputs }
  | { readonly verb: "forget" };

export interface Progress {
  readonly step: number;
  readonly total: number | null;
  readonly loss: number;
  /** On the held-back examples, before the training and after each epoch so far. */
  readonly accuracies: readonly number[];
}

/** The state of the run; `unfinished`: it was interrupted, and resumes with the same examples. */
export interface Status {
  readonly steps: number;
  readonly unfinished: boolean;
  readonly accuracies: readonly number[];
  /** What the user should know about the training; `null`: nothing. */
  readonly note: string | null;
}

/** Scores of all words (logits), before and after the training. */
export interface Guesses {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

export type Answer =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly progress: Progress }
  | { readonly loading: { readonly done: number; readonly all: number } };
