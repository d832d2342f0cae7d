// Thousands of weak edges are a haze: how many curves pass each pixel, in the mix of their colours.
// Counting takes a tenth of the time that stroking as many curves takes. At half the size of the
// graph: scaled up it is soft, as a haze should be.

const COARSE = 0.5;

/** Adds one to each pixel a cubic curve passes, by forward differences: a few sums for each step. */
function countCurve(counts, width, curves, at, weight) {
  let x = COARSE * curves[at];
  let y = COARSE * curves[at + 1];
  const endX = COARSE * curves[at + 6];
  const endY = COARSE * curves[at + 7];
  const ex = 3 * (COARSE * curves[at + 2] - x);
  const ey = 3 * (COARSE * curves[at + 3] - y);
  const bx = 3 * COARSE * (curves[at + 4] - curves[at + 2]) - ex;
  const by = 3 * COARSE * (curves[at + 5] - curves[at + 3]) - ey;
  const ax = endX - x - ex - bx;
  const ay = endY - y - ey - by;
  const steps = Math.max(Math.abs(endX - x), Math.abs(endY - y), 4) | 0;
  const h = 1 / steps;
  let dx = ((ax * h + bx) * h + ex) * h;
  let dy = ((ay * h + by) * h + ey) * h;
  let ddx = (6 * ax * h + 2 * bx) * h * h;
  let ddy = (6 * ay * h + 2 * by) * h * h;
  const dddx = 6 * ax * h * h * h;
  const dddy = 6 * ay * h * h * h;
  for (let step = 0; step <= steps; step++) {
    counts[(y | 0) * width + (x | 0)] += weight;
    x += dx;
    y += dy;
    dx += ddx;
    dy += ddy;
    ddx += dddx;
    ddy += dddy;
  }
}

/** The haze of a list of edges as a canvas, to be scaled to the size of the graph. */
function hazeOf(model, curves, list, colours) {
  const width = Math.ceil(COARSE * model.layout.width);
  const height = Math.ceil(COARSE * model.layout.height);
  hazeOf.kept ??= {
    canvas: html("canvas", { width, height }),
    counts: [new Float32Array(width * height), new Float32Array(width * height)],
    pixels: new ImageData(width, height),
  };
  const { canvas, counts, pixels } = hazeOf.kept;
  counts.forEach((side) => side.fill(0));
  const { score, limit } = model.edges;
  for (const e of list) {
    const weight = 1 + 6 * shareOf(score[e], limit);
    countCurve(counts[score[e] < 0 ? 1 : 0], width, curves, 8 * e, weight);
  }
  const density = 0.003 + 0.025 * Math.sqrt(700 / Math.max(list.length, 700));
  fillPixels(new Uint32Array(pixels.data.buffer), counts, density, colours);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function fillPixels(pixels, [plus, minus], density, colours) {
  const [p, n] = [channels(colours.positive), channels(colours.negative)];
  const opacity = Float32Array.from({ length: 257 }, (_, at) => 255 * (1 - Math.exp((-density * at) / 4)));
  for (let i = 0; i < pixels.length; i++) {
    const sum = plus[i] + minus[i];
    if (sum === 0) {
      pixels[i] = 0;
      continue;
    }
    const share = plus[i] / sum;
    const alpha = Math.min(opacity[Math.min(4 * sum, 256) | 0], 84);
    pixels[i] = (alpha << 24) | (mix(p[2], n[2], share) << 16) | (mix(p[1], n[1], share) << 8) | mix(p[0], n[0], share);
  }
}

function mix(one, other, share) {
  return other + (one - other) * share;
}

/** Red, green and blue of `#rrggbb`. */
function channels(colour) {
  return [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
}
