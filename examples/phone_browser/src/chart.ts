/** Draws loss and accuracy into an SVG of 320 x 96. */

const [WIDTH, HEIGHT, EDGE] = [320, 96, 4];

export function drawChart(svg: SVGElement, losses: readonly number[], accuracies: readonly number[]): void {
  const most = Math.max(...losses, 1e-9);
  const grid = [0, 0.5, 1].map(
    (fraction) => `<line x1="0" x2="${WIDTH}" y1="${height(fraction)}" y2="${height(fraction)}" />`,
  );
  const lines = [
    `<polyline points="${points(smooth(losses).map((loss) => loss / most))}" />`,
    `<polyline class="accuracy" points="${points(accuracies)}" />`,
  ];
  svg.innerHTML = [...grid, ...lines].join("");
}

function height(fraction: number): number {
  return EDGE + (1 - fraction) * (HEIGHT - 2 * EDGE);
}

function points(fractions: readonly number[]): string {
  const step = WIDTH / Math.max(fractions.length - 1, 1);
  return fractions.map((fraction, i) => `${(i * step).toFixed(1)},${height(fraction).toFixed(1)}`).join(" ");
}

/** Losses of single batches jump; a running mean shows where they go. */
function smooth(values: readonly number[]): number[] {
  let mean = values[0] ?? 0;
  return values.map((value) => (mean += 0.25 * (value - mean)));
}
