/** Sentences that are typed. */

import type { Inputs } from "../messages.js";
import type { Changed, Subject } from "./subject.js";

/** Milliseconds without a key after which the model reads what is typed. */
const PAUSE = 250;

export class Sentences implements Subject<string> {
  readonly name = "sentences";

  constructor(
    private readonly field: HTMLTextAreaElement,
    private readonly changed: Changed,
  ) {
    let timer: ReturnType<typeof setTimeout>;
    field.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(changed, PAUSE);
    });
  }

  current(): string | null {
    return this.field.value.trim() || null;
  }

  clear(): void {
    this.field.value = "";
    this.changed();
  }

  inputs(texts: readonly string[]): Inputs {
    return { kind: "texts", texts };
  }

  thumbnail(text: string): HTMLElement {
    return Object.assign(document.createElement("span"), { textContent: text });
  }
}
