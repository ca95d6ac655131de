/** The messages between the page of manners and its worker. */

import type { Example } from "edgepeft-runtime";

/** One call at a time is answered in order, except `stop`, which ends the current one. */
export type Request =
  | { readonly verb: "open"; readonly threads: number }
  | {
      readonly verb: "train";
      readonly examples: readonly Example[];
      readonly heldBack: readonly Example[];
      readonly epochs: number;
    }
  | { readonly verb: "ask"; readonly prompt: string; readonly trained: boolean }
  | { readonly verb: "update" }
  | { readonly verb: "deliver"; readonly example: Example }
  | { readonly verb: "forget" }
  | { readonly verb: "stop" };

/** What the worker says meanwhile. */
export type News =
  /** Bytes of the model that are there, of all. */
  | { readonly kind: "loading"; readonly done: number; readonly all: number }
  /** Calls of graphs that a step has completed, of all. */
  | { readonly kind: "call"; readonly step: number; readonly done: number; readonly calls: number }
  | { readonly kind: "step"; readonly step: number; readonly total: number | null; readonly loss: number }
  /** An answer so far. */
  | { readonly kind: "text"; readonly trained: boolean; readonly text: string };

export interface Status {
  /** Optimizer steps of this run. */
  readonly steps: number;
  readonly threads: number;
  /** Loss on what is held back, before the last training and after it; `null` if nothing was. */
  readonly heldBack: readonly [number, number] | null;
  /** What the user should know about the training; `null`: nothing. */
  readonly note: string | null;
}

export type Answer =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly news: News };
