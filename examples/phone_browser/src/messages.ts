/** The messages between the page and its worker. */

export interface Examples {
  /** Shares of ink, `[drawings, 1, 8, 8]`. */
  readonly image: Float32Array;
  readonly labels: readonly number[];
}

/** One call at a time is answered in order; `train` also sends {@link Progress}. */
export type Request =
  | { readonly verb: "open" }
  | { readonly verb: "train"; readonly train: Examples; readonly test: Examples; readonly epochs: number }
  | { readonly verb: "predict"; readonly image: Float32Array }
  | { readonly verb: "update" }
  | { readonly verb: "forget" };

export interface Progress {
  readonly step: number;
  readonly total: number | null;
  readonly loss: number;
  /** Of the held-back drawings after each epoch so far. */
  readonly accuracies: readonly number[];
}

/** Where the run stands; `unfinished`: it was interrupted, and resumes with the same drawings. */
export interface Status {
  readonly steps: number;
  readonly unfinished: boolean;
  readonly accuracies: readonly number[];
}

export interface Guesses {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

export type Answer =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly progress: Progress };
