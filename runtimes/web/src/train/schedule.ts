/** Learning rate schedules: the factor of the learning rate for each optimizer step, as in transformers. */

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

/** Returns warm-up steps: a number is one already, `{ fraction }` is a fraction of `total`, rounded up. */
export function warmupSteps(warmup: number | { readonly fraction: number }, total: number | null): number {
  const fraction = typeof warmup === "number" ? null : warmup.fraction;
  const valid =
    fraction === null ? Number.isSafeInteger(warmup) && Number(warmup) >= 0 : fraction >= 0 && fraction <= 1;
  if (!valid) {
    const hint = "give a number of steps (0 or more), or a { fraction } of all steps (0 to 1).";
    throw new TrainingError("bad-warmup", "The warm-up is out of range.", `warmup: ${JSON.stringify(warmup)}`, hint);
  }
  if (fraction === null) return warmup as number;
  if (total === null && fraction > 0) throw unknownTotal("a warm-up given as a fraction");
  return Math.ceil((total ?? 0) * fraction);
}

/** The error of a setting that needs the number of steps, which the data does not have. */
export function unknownTotal(what: string): TrainingError {
  const message = `The number of batches is unknown, but ${what} depends on it.`;
  return new TrainingError("unknown-number-of-steps", message, null, "pass maxSteps, or data that has a length.");
}
