/** Pictures of a visitor's files, and files for the visitor. */
import { headerSize } from "../header";
import type { Pixels } from "../pictures";

const FINENESS = 512; // pixels along a side, about, of what is averaged to fit a small size

export type Opened = ImageBitmap | HTMLImageElement;

/** A picture of a file, upright; null where the browser can read none. */
export async function open(file: Blob): Promise<Opened | null> {
  return (await createImageBitmap(file).catch(() => null)) ?? vector(file);
}

/** An SVG, which is drawn at any size. */
async function vector(file: Blob): Promise<HTMLImageElement | null> {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  const read = await image.decode().then(() => image.width > 0 && image.height > 0, () => false);
  URL.revokeObjectURL(image.src);
  return read ? image : null;
}

/**
 * The megapixels of a file that has more pixels than a limit, and those of the limit, as text; null of others, and where
 * its header does not say. It is not decoded.
 */
export async function tooLarge(file: Blob, limit: number): Promise<{ has: string; most: string } | null> {
  const size = await headerSize(file);
  if (!size || size.height * size.width <= limit) return null;
  const [has, most] = [size.height * size.width, limit].map((count) => (count / 1e6).toFixed(1));
  return { has: has!, most: most! };
}

function draw(image: Opened, height: number, width: number, background?: string): ImageData {
  const factor = Math.min(width / image.width, height / image.height);
  const [w, h] = [image.width * factor, image.height * factor];
  const context = new OffscreenCanvas(width, height).getContext("2d")!;
  context.imageSmoothingEnabled = !Number.isInteger(factor); // pixels stay sharp where they fit evenly
  context.imageSmoothingQuality = "high";
  if (background) {
    context.fillStyle = background;
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  return context.getImageData(0, 0, width, height);
}

/** A picture on white, as large as it fits a size. */
export function fit(image: Opened, height: number, width: number): Pixels {
  const scale = Math.max(1, Math.round(FINENESS / Math.max(height, width)));
  const { data } = draw(image, height * scale, width * scale, "white");
  const shrunk = new Uint8ClampedArray(4 * height * width);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      for (let c = 0; c < 4; c++) {
        let total = 0;
        for (let i = 0; i < scale; i++) {
          const begin = 4 * ((row * scale + i) * width * scale + column * scale) + c;
          for (let j = 0; j < scale; j++) total += data[begin + 4 * j]!;
        }
        shrunk[4 * (row * width + column) + c] = total / scale ** 2;
      }
    }
  }
  return { data: shrunk, height, width };
}

/** A picture of its own shape with the longer side of a number of pixels at most; transparent parts stay so. */
export function pixels(image: Opened, longest = Infinity): Pixels {
  const share = Math.min(1, longest / Math.max(image.width, image.height));
  const [height, width] = [image.height, image.width].map((side) => Math.max(1, Math.round(share * side)));
  return { data: draw(image, height!, width!).data as Pixels["data"], height: height!, width: width! };
}

/** A canvas of pixels. */
export function canvasOf({ data, height, width }: Pixels): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = [height, width];
  canvas.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
  return canvas;
}

export function png(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this browser has no memory for the file")))),
  );
}

/** Hands a file to the visitor. */
export function save(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
