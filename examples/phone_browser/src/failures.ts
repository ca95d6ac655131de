/** Failures in the words of the page's user. */

import { EdgepeftError } from "edgepeft-runtime";

/** Returns one or two sentences: what happened, and what to do. */
export function messageOf(failure: unknown): string {
  if (failure instanceof EdgepeftError) return ofRuntime(failure);
  const { name, message } = failure as Error;
  if (name === "QuotaExceededError") return FULL;
  if (name === "NotAllowedError") return "The browser does not allow the camera. Allow it, or choose a photo.";
  if (name === "NotFoundError") return "There is no camera. Choose a photo instead.";
  return message || String(failure);
}

const FULL = "The storage of this browser is full. Remove some examples, or free space on the device.";

function ofRuntime({ message, code, context, hint }: EdgepeftError): string {
  const facts = `${message} ${context ?? ""}`;
  if (facts.includes("QuotaExceeded")) return FULL;
  if (code === "state-in-use") return "Another tab teaches this model. Close it, and reload this page.";
  if (code === "remote-unreachable" && !navigator.onLine)
    return "This device is offline. What it has learned is kept: deliver it later.";
  if (code === "missing-file" && !navigator.onLine)
    return "This model is not on the device yet. Connect once, and reload.";
  if (code === "missing-file")
    return "This server does not have the model: prepare it as the README says, and build the page again.";
  return [message, hint && `${hint[0]!.toUpperCase()}${hint.slice(1)}`].filter(Boolean).join(" ");
}
