/** Checks on settings that a caller passes. */

import { TrainingError } from "./errors.js";

/** Returns a setting that must be a whole number of at least 1. @throws TrainingError it is another. */
export function positive(name: string, value: number): number {
  require(name, value, Number.isSafeInteger(value) && value >= 1, "a whole number of at least 1");
  return value;
}

/** Refuses a setting that is not `allowed`. @throws TrainingError `valid` is false. */
export function require(name: string, value: unknown, valid: boolean, allowed: string): void {
  if (valid) return;
  throw new TrainingError("bad-setting", `${name} is out of range.`, `${name}: ${String(value)}`, `pass ${allowed}.`);
}
