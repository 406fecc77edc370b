/** What kind of picture is given to a network, by the shares of its pixels. Needs no DOM. */
import type { Pixels } from "./pictures";

export type Kind = "lines" | "filled" | "photograph";

const WHITE = 225; // the darkest channel of a white pixel at least
const COLOURFUL = 48; // the range of the channels of a coloured pixel at least
const LARGEST = 2 ** 16; // pixels that are looked at
const CUT = 0.01; // of a picture's pixels: it was cut out where more are transparent
const [FEW, MOST] = [6, 0.45]; // colours of a drawing, and their share of its opaque pixels at least

/**
 * Of a picture on white: black lines alone, a drawing that has colours or large dark areas, or a photograph, which
 * one is too that was cut out.
 */
export function kindOf({ data }: Pixels): Kind {
  const step = 4 * Math.max(1, Math.floor(data.length / 4 / LARGEST));
  if (manyColours(data, step)) return "photograph";
  let [white, coloured, all] = [0, 0, 0];
  for (let i = 0; i < data.length; i += step, all++) {
    const alpha = data[i + 3]! / 255;
    const channels = [0, 1, 2].map((c) => 255 - alpha * (255 - data[i + c]!)); // on white
    const least = Math.min(...channels);
    if (least >= WHITE) white++;
    else if (Math.max(...channels) - least >= COLOURFUL) coloured++;
  }
  if (white < 0.35 * all) return "photograph";
  return white >= 0.55 * all && coloured <= 0.02 * all ? "lines" : "filled";
}

/** Whether what was cut out has more than a few colours, of 5 bits a channel. */
function manyColours(data: Uint8ClampedArray, step: number): boolean {
  const counts = new Map<number, number>();
  let [opaque, all] = [0, 0];
  for (let i = 0; i < data.length; i += step, all++) {
    if (data[i + 3]! < 128) continue;
    const colour = ((data[i]! >> 3) << 10) | ((data[i + 1]! >> 3) << 5) | (data[i + 2]! >> 3);
    counts.set(colour, (counts.get(colour) ?? 0) + 1);
    opaque++;
  }
  const largest = [...counts.values()].sort((a, b) => b - a).slice(0, FEW);
  return opaque < (1 - CUT) * all && largest.reduce((a, b) => a + b, 0) < MOST * opaque;
}
