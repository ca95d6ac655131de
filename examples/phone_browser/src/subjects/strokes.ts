/** Strokes of a drawing, and their pixels as the model reads them. */

export type Point = readonly [number, number];
export type Stroke = readonly Point[];

/** Pixels along a side of the model's input, and of the picture that they are counted in. */
export const SIDE = 8;
const FINE = 32;

/** Fractions of ink, row by row, of the drawing fitted into a square, as the digits that the model has learned. */
export function pixelsOf(strokes: readonly Stroke[]): Float32Array {
  const canvas = new OffscreenCanvas(FINE, FINE);
  const pen = canvas.getContext("2d", { willReadFrequently: true })!;
  drawFitted(pen, strokes, FINE, 4, "black");
  const { data } = pen.getImageData(0, 0, FINE, FINE);
  const cell = FINE / SIDE;
  const pixels = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < FINE; y++) {
    for (let x = 0; x < FINE; x++) {
      const alpha = data[4 * (y * FINE + x) + 3]! / 255;
      pixels[Math.floor(y / cell) * SIDE + Math.floor(x / cell)]! += alpha / cell ** 2;
    }
  }
  return pixels;
}

type Pen = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

/** Draws strokes so that they fill a square of `side`, whatever their size on the pad. */
export function drawFitted(pen: Pen, strokes: readonly Stroke[], side: number, width: number, colour: string): void {
  const points = strokes.flat();
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const [wide, high] = [Math.max(...xs) - left, Math.max(...ys) - top];
  const scale = (side - width) / Math.max(wide, high, 1);
  const [x0, y0] = [(side - wide * scale) / 2, (side - high * scale) / 2];
  drawStrokes(
    pen,
    strokes.map((stroke) => stroke.map(([x, y]) => [x0 + (x - left) * scale, y0 + (y - top) * scale])),
    width,
    colour,
  );
}

/** Draws strokes where they are; a tap is a dot. */
export function drawStrokes(pen: Pen, strokes: readonly Stroke[], width: number, colour: string): void {
  pen.lineWidth = width;
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = colour;
  for (const stroke of strokes) {
    pen.beginPath();
    for (const [x, y] of stroke) pen.lineTo(x, y);
    if (stroke.length === 1) pen.lineTo(stroke[0]![0] + 0.01, stroke[0]![1]);
    pen.stroke();
  }
}
