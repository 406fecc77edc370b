/** Drawings as vectors: strokes, the text that carries them, and what the network sees of them. Needs no DOM. */
import type { Pixels } from "./pictures";

export const GRID = 1024; // units along the longer side of the sheet
export const LINE = 2; // pixels of 64 along the longer side: the width of the lines that the network knows
export const ERASER = 3; // of the pen's width
const SAMPLES = 8; // along a side of a pixel
const FURTHEST = 2 * GRID; // from the sheet's corner, in a text

/** A line through points, x and y in turns in units of the grid; one point is a dot. */
export interface Stroke {
  points: number[];
  erases: boolean;
}

/** Strokes above a picture, which has the network's size; without one, above white. */
export interface Sketch {
  strokes: readonly Stroke[];
  base: Pixels | null;
}

/** What is at a sample: the picture below, ink, or what the eraser left. */
const [BASE, INK, WHITE] = [0, 1, 2];

/**
 * A drawing as the network sees it, computed here, not by a canvas: it is the same in every browser.
 *
 * @param line the width of lines in pixels of 64 along the longer side
 */
export function rasterize({ strokes, base }: Sketch, height: number, width: number, line = LINE): Pixels {
  const [rows, columns] = [height * SAMPLES, width * SAMPLES];
  const samples = new Uint8Array(rows * columns);
  const scale = Math.max(rows, columns) / GRID;
  for (const { points, erases } of strokes) {
    const radius = (((line / 64) * GRID) / 2) * scale * (erases ? ERASER : 1);
    const places = points.map((value) => value * scale);
    for (let i = 0; i < places.length; i += 2) {
      const from = Math.max(0, i - 2); // a dot is a line from a point to itself
      fill(samples, rows, columns, radius, erases ? WHITE : INK, places.slice(from, from + 2), places.slice(i, i + 2));
    }
  }
  return shrink(samples, base, height, width);
}

/** Sets the samples whose middles are no further than a radius from a line. */
function fill(
  samples: Uint8Array,
  rows: number,
  columns: number,
  radius: number,
  value: number,
  [x0, y0]: number[],
  [x1, y1]: number[],
): void {
  const [dx, dy] = [x1! - x0!, y1! - y0!];
  const square = dx * dx + dy * dy || 1;
  const [top, bottom] = [Math.min(y0!, y1!) - radius, Math.max(y0!, y1!) + radius];
  const [left, right] = [Math.min(x0!, x1!) - radius, Math.max(x0!, x1!) + radius];
  for (let row = Math.max(0, Math.floor(top)); row < Math.min(rows, bottom); row++) {
    for (let column = Math.max(0, Math.floor(left)); column < Math.min(columns, right); column++) {
      const [x, y] = [column + 0.5 - x0!, row + 0.5 - y0!];
      const along = Math.max(0, Math.min(1, (x * dx + y * dy) / square));
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius) samples[row * columns + column] = value;
    }
  }
}

/** Each pixel is the mean of its samples. */
function shrink(samples: Uint8Array, base: Pixels | null, height: number, width: number): Pixels {
  const data = new Uint8ClampedArray(4 * height * width).fill(255);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const counts = [0, 0, 0];
      for (let i = 0; i < SAMPLES; i++) {
        const begin = (row * SAMPLES + i) * width * SAMPLES + column * SAMPLES;
        for (let j = 0; j < SAMPLES; j++) counts[samples[begin + j]!]!++;
      }
      const at = 4 * (row * width + column);
      for (let c = 0; c < 3; c++) {
        const below = base ? base.data[at + c]! : 255;
        data[at + c] = (counts[BASE]! * below + counts[WHITE]! * 255) / SAMPLES ** 2;
      }
    }
  }
  return { data, height, width };
}

/** Strokes as text of A-Z, a-z, 0-9, - and _: numbers of 7 bits a byte, places as steps from the one before. */
export function encode(strokes: readonly Stroke[]): string {
  const bytes: number[] = [];
  const put = (value: number): void => {
    for (; value > 127; value >>>= 7) bytes.push((value & 127) | 128);
    bytes.push(value);
  };
  for (const { points, erases } of strokes) {
    put(points.length + Number(erases)); // points are even in number
    points.forEach((value, i) => {
      const step = value - (points[i - 2] ?? 0);
      put(step < 0 ? -2 * step - 1 : 2 * step);
    });
  }
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The strokes of a text. Throws an Error where it is none of {@link encode}. */
export function decode(text: string): Stroke[] {
  if (!/^[\w-]*$/.test(text) || text.length % 4 === 1) throw new Error("the text is damaged");
  const bytes = [...atob(text.replaceAll("-", "+").replaceAll("_", "/"))].map((each) => each.charCodeAt(0));
  let at = 0;
  const take = (): number => {
    for (let value = 0, shift = 0; at < bytes.length && shift < 28; shift += 7) {
      const byte = bytes[at++]!;
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw new Error("the drawing is cut short");
  };
  const strokes: Stroke[] = [];
  while (at < bytes.length) {
    const head = take();
    const points: number[] = [];
    while (points.length < (head & ~1)) {
      const step = take();
      const value = (points.at(-2) ?? 0) + (step & 1 ? -(step + 1) / 2 : step / 2);
      if (Math.abs(value) > FURTHEST) throw new Error("the drawing has points far from its sheet");
      points.push(value);
    }
    strokes.push({ points, erases: (head & 1) === 1 });
  }
  return strokes;
}
