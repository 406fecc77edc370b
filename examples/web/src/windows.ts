/** A network that is called on windows of larger images: the places and weights of bbdm/networks/windows.py. */

const SPREAD = 0.125; // of the Gaussian weights, as a share of a window's side
const LEAST = 1e-3; // Gaussian weight, as a share of the largest

export type Shape = [channels: number, height: number, width: number];

/** One side of an image in windows of a length: where each begins, and the weights of its values. */
export interface Side {
  length: number;
  starts: number[];
  weights: Float64Array[]; // those of a value add up to 1
}

/**
 * The windows of a side, spread evenly; one where the side is no longer than a window.
 *
 * @param overlap of neighbouring windows at least, as a share of a window
 * @param unit windows begin at multiples of it
 */
export function spread(size: number, length: number, overlap: number, unit: number): Side {
  if (size <= length) return { length: size, starts: [0], weights: [new Float64Array(size).fill(1)] };
  const longest = Math.floor(length / unit);
  const free = Math.floor(size / unit) - longest;
  const gaps = Math.ceil(free / Math.max(1, longest - Math.ceil(Math.ceil(overlap * length) / unit)));
  const starts = Array.from({ length: gaps + 1 }, (_, i) => Math.floor((i * free) / gaps) * unit);
  const bell = Float64Array.from({ length }, (_, i) =>
    Math.max(LEAST, Math.exp(-0.5 * ((i - (length - 1) / 2) / (SPREAD * length)) ** 2)),
  );
  const total = new Float64Array(size);
  for (const start of starts) bell.forEach((weight, i) => (total[start + i]! += weight));
  return { length, starts, weights: starts.map((start) => bell.map((weight, i) => weight / total[start + i]!)) };
}

/**
 * Adds what a network makes of windows, each times the weights of its place.
 *
 * @param images what the network sees, (C, H, W) each
 * @param sides the windows of height and width
 * @param atOnce windows in a call
 * @param network of windows of each image, (N, C, h, w); it returns one such array
 * @param sum (C, H, W) zeros
 * @param report called after each call with the number of windows done, and that of all
 */
export async function blend(
  images: Float32Array[],
  [channels, height, width]: Shape,
  [down, across]: [Side, Side],
  atOnce: number,
  network: (windows: Float32Array[], shape: Shape) => Promise<Float32Array>,
  sum: Float32Array,
  report: (done: number, total: number) => Promise<void>,
): Promise<void> {
  const places = down.starts.flatMap((_, i) => across.starts.map((_, j) => [i, j] as const));
  const [h, w] = [down.length, across.length];
  for (let begin = 0; begin < places.length; begin += atOnce) {
    const group = places.slice(begin, begin + atOnce);
    const rows = function* (): Generator<[whole: number, part: number, weight: number, across: Float64Array]> {
      for (const [n, [i, j]] of group.entries()) {
        for (let c = 0; c < channels; c++) {
          for (let row = 0; row < h; row++) {
            const whole = (c * height + down.starts[i]! + row) * width + across.starts[j]!;
            yield [whole, ((n * channels + c) * h + row) * w, down.weights[i]![row]!, across.weights[j]!];
          }
        }
      }
    };
    const cut = images.map((image) => {
      const windows = new Float32Array(group.length * channels * h * w);
      for (const [whole, part] of rows()) windows.set(image.subarray(whole, whole + w), part);
      return windows;
    });
    const made = await network(cut, [channels, h, w]);
    for (const [whole, part, weight, weights] of rows()) {
      for (let k = 0; k < w; k++) sum[whole + k]! += weight * weights[k]! * made[part + k]!;
    }
    await report(begin + group.length, places.length);
  }
}
