/** Learning rate schedules: the factor of the learning rate, by optimizer step, as transformers' schedules give it. */

import { TrainingError } from "../errors.js";

const AFTER = {
  constant: () => 1,
  linear: (step: number, warmup: number, total: number) => Math.max(0, (total - step) / Math.max(1, total - warmup)),
  cosine: (step: number, warmup: number, total: number) => {
    return Math.max(0, 0.5 * (1 + Math.cos((Math.PI * (step - warmup)) / Math.max(1, total - warmup))));
  },
};

export type ScheduleName = keyof typeof AFTER;

/** The factor of a step (counted from 0); over the first `warmup` steps it rises from 0. */
export type Schedule = (step: number, total: number) => number;

export function scheduleOf(name: ScheduleName, warmup: number): Schedule {
  if (!Object.hasOwn(AFTER, name)) {
    const hint = `use one of ${Object.keys(AFTER).join(", ")}.`;
    throw new TrainingError("unknown-schedule", `There is no learning rate schedule ${name}.`, null, hint);
  }
  return (step, total) => (step < warmup ? step / Math.max(1, warmup) : AFTER[name](step, warmup, total));
}

/** Warm-up as steps: a number of them, or `{ share }` of all steps, rounded up. */
export function warmupSteps(warmup: number | { readonly share: number }, total: number | null): number {
  const share = typeof warmup === "number" ? null : warmup.share;
  const fits = share === null ? Number.isSafeInteger(warmup) && (warmup as number) >= 0 : share >= 0 && share <= 1;
  if (!fits) {
    const hint = "give a number of steps (0 or more), or { share } of all steps (0 to 1).";
    throw new TrainingError("bad-warmup", "The warm-up is out of range.", `found ${JSON.stringify(warmup)}`, hint);
  }
  if (share === null) return warmup as number;
  if (total === null && share > 0) throw unknownTotal("a warm-up given as a share");
  return Math.ceil((total ?? 0) * share);
}

/** The error of a setting that needs the number of steps where the data does not tell it. */
export function unknownTotal(what: string): TrainingError {
  const message = `The data does not tell how many batches it gives, and ${what} needs to know.`;
  return new TrainingError("unknown-number-of-steps", message, null, "pass maxSteps, or data that has a length.");
}
