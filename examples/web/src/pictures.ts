/** Pictures as the network has them, and as pixels of a canvas. */

const WHITE = 250; // of 255 at least: JPEG and scaling change white a little

/** A picture: (channels, height, width) values in [-1, 1]. */
export interface Picture {
  data: Float32Array;
  channels: number;
  height: number;
  width: number;
}

/** Opaque RGBA pixels, row by row. */
export interface Pixels {
  data: Uint8ClampedArray<ArrayBuffer>;
  height: number;
  width: number;
}

/** A picture of opaque RGBA pixels, grey (by ITU-R 601, as PIL has it) for one channel. */
export function fromPixels(pixels: Uint8ClampedArray, height: number, width: number, channels: number): Picture {
  if (channels !== 1 && channels !== 3) throw new Error(`a picture can become 1 or 3 channels, not ${channels}`);
  const data = new Float32Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [red, green, blue] = [pixels[4 * i]!, pixels[4 * i + 1]!, pixels[4 * i + 2]!];
    const grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    for (let c = 0; c < channels; c++) {
      const value = channels === 1 ? grey : pixels[4 * i + c]!;
      data[c * height * width + i] = Math.fround(value / 127.5) - 1;
    }
  }
  return { data, channels, height, width };
}

/** Opaque RGBA pixels of a picture of 1 or 3 channels. */
export function toPixels({ data, channels, height, width }: Picture): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(4 * height * width).fill(255); // rounds, and half to even as NumPy
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) {
      pixels[4 * i + c] = Math.fround(Math.fround(data[(channels === 1 ? 0 : c) * height * width + i]! + 1) * 127.5);
    }
  }
  return pixels;
}

/** Whether pixels are white all over. */
export function isWhite({ data }: Pixels): boolean {
  return data.every((value) => value >= WHITE);
}

/** The next multiple of a stride. */
export function up(side: number, stride: number): number {
  return Math.ceil(side / stride) * stride;
}

/** The picture with its last row and column repeated up to multiples of a stride. */
export function pad(picture: Picture, stride: number): Picture {
  const [height, width] = [up(picture.height, stride), up(picture.width, stride)];
  return height === picture.height && width === picture.width ? picture : window(picture, height, width);
}

/** The picture with its last row and column repeated up to a size. */
export function atLeast(picture: Picture, [height, width]: [number, number]): Picture {
  return window(picture, Math.max(height, picture.height), Math.max(width, picture.width));
}

/** The first rows and columns, clamped to [-1, 1]. */
export function crop(picture: Picture, { height, width }: { height: number; width: number }): Picture {
  const cropped = window(picture, height, width);
  for (let i = 0; i < cropped.data.length; i++) cropped.data[i] = Math.max(-1, Math.min(1, cropped.data[i]!));
  return cropped;
}

/** The first rows and columns of a picture; beyond its edges the last ones are repeated. */
function window({ data, channels, height: rows, width: columns }: Picture, height: number, width: number): Picture {
  const made = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    for (let row = 0; row < height; row++) {
      const from = (c * rows + Math.min(row, rows - 1)) * columns;
      const to = (c * height + row) * width;
      made.set(data.subarray(from, from + Math.min(width, columns)), to);
      if (width > columns) made.fill(data[from + columns - 1]!, to + columns, to + width);
    }
  }
  return { data: made, channels, height, width };
}
