/** Drawings on the pad. */

import type { Inputs } from "../messages.js";
import { Pad } from "./pad.js";
import { SIDE, type Stroke, drawFitted, pixelsOf } from "./strokes.js";
import type { Changed, Subject } from "./subject.js";

type Drawing = readonly Stroke[];

export class Drawings implements Subject<Drawing> {
  readonly name = "drawings";
  private readonly pad: Pad;

  constructor(canvas: HTMLCanvasElement, changed: Changed) {
    this.pad = new Pad(canvas, changed);
  }

  current(): Drawing | null {
    return this.pad.strokes.length > 0 ? this.pad.strokes : null;
  }

  clear(): void {
    this.pad.clear();
  }

  inputs(drawings: readonly Drawing[]): Inputs {
    const values = new Float32Array(drawings.length * SIDE * SIDE);
    drawings.forEach((strokes, i) => values.set(pixelsOf(strokes), i * SIDE * SIDE));
    return { kind: "ink", values, side: SIDE };
  }

  thumbnail(strokes: Drawing): HTMLElement {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 96;
    const pen = canvas.getContext("2d")!;
    pen.translate(12, 8);
    drawFitted(pen, strokes, 68, 7, getComputedStyle(document.body).color);
    return canvas;
  }
}
