/** What kind of picture is given to a network, by the shares of its pixels. Needs no DOM. */
import type { Pixels } from "./pictures";

export type Kind = "lines" | "filled" | "photograph";

const WHITE = 225; // the darkest channel of a white pixel at least
const COLOURFUL = 48; // the range of the channels of a coloured pixel at least
const LARGEST = 2 ** 16; // pixels that are looked at

/** Of a picture on white: black lines alone, a drawing that has colours or large dark areas, or a photograph. */
export function kindOf({ data }: Pixels): Kind {
  const step = 4 * Math.max(1, Math.floor(data.length / 4 / LARGEST));
  let [white, coloured, all] = [0, 0, 0];
  for (let i = 0; i < data.length; i += step, all++) {
    const [red, green, blue, alpha] = [data[i]!, data[i + 1]!, data[i + 2]!, data[i + 3]!];
    const least = alpha ? Math.min(red, green, blue) : 255;
    if (least >= WHITE) white++;
    else if (alpha && Math.max(red, green, blue) - least >= COLOURFUL) coloured++;
  }
  if (white < 0.35 * all) return "photograph";
  return white >= 0.55 * all && coloured <= 0.02 * all ? "lines" : "filled";
}
