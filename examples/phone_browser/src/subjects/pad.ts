/** The pad that one draws on, by finger, pen or mouse. */

import { type Stroke, drawStrokes } from "./strokes.js";

const WIDTH = 14;

export class Pad {
  strokes: Stroke[] = [];
  private readonly pen: CanvasRenderingContext2D;

  /** @param changed called after each stroke, and when the pad is cleared. */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly changed: () => void,
  ) {
    this.pen = canvas.getContext("2d")!;
    new ResizeObserver(() => this.fit()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
  }

  clear(): void {
    this.strokes = [];
    this.draw();
    this.changed();
  }

  private begin(event: PointerEvent): void {
    if (!event.isPrimary) return;
    const stroke: (readonly [number, number])[] = [[event.offsetX, event.offsetY]];
    this.strokes.push(stroke);
    this.draw();
    this.canvas.setPointerCapture(event.pointerId);
    const end = new AbortController();
    const add = (move: PointerEvent): void => {
      stroke.push([Math.round(move.offsetX), Math.round(move.offsetY)]);
      this.draw();
    };
    const finish = (): void => {
      end.abort();
      this.changed();
    };
    this.canvas.addEventListener("pointermove", add, { signal: end.signal });
    this.canvas.addEventListener("pointerup", finish, { signal: end.signal });
    this.canvas.addEventListener("pointercancel", finish, { signal: end.signal });
  }

  private fit(): void {
    this.canvas.width = this.canvas.clientWidth * devicePixelRatio;
    this.canvas.height = this.canvas.clientHeight * devicePixelRatio;
    this.draw();
  }

  private draw(): void {
    this.pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    drawStrokes(this.pen, this.strokes, WIDTH, getComputedStyle(this.canvas).color);
  }
}
