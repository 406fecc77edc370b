/** The pictures that the page opens with, made by the build with the network that it ships. */
import { readFileSync } from "node:fs";
import { deflateSync } from "node:zlib";
import * as ort from "onnxruntime-web/wasm";
import { Bridge, fromPixels, graphs, pictureSize, readSettings, toPixels } from "./src/bbdm";
import { EXAMPLES, OPENING } from "./src/page/examples";
import { chunk, SIGNATURE } from "./src/png";
import { decode, rasterize } from "./src/strokes";

/** A PNG of the first example's pictures, one below the other. */
export async function openingPicture(folder: string): Promise<Uint8Array> {
  const settings = readSettings(JSON.parse(readFileSync(`${folder}/bridge.json`, "utf8")));
  const files = new Map(graphs(settings).map((name) => [name, new Uint8Array(readFileSync(`${folder}/${name}`))]));
  ort.env.wasm.numThreads = 1;
  const bridge = await Bridge.load(settings, files, ort);
  const [height, width] = pictureSize(settings);
  const { data } = rasterize({ strokes: decode(EXAMPLES[0]!.drawing), base: null }, height, width);
  const seeds = Array.from({ length: OPENING.count }, (_, i) => BigInt(OPENING.seed + i));
  const pictures = await bridge.translate(fromPixels(data, height, width, settings.image_channels), seeds);
  await bridge.release();
  return png(Buffer.concat(pictures.map((picture) => Buffer.from(toPixels(picture)))), width);
}

/** A PNG of RGBA pixels. */
function png(pixels: Uint8Array, width: number): Uint8Array {
  const height = pixels.length / 4 / width;
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0]); // 8 bits, RGBA
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  const rows = Array.from({ length: height }, (_, row) => [Buffer.of(0), pixels.subarray(4 * row * width, 4 * (row + 1) * width)]);
  const data = deflateSync(Buffer.concat(rows.flat()));
  return Buffer.concat([Buffer.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", Buffer.of())]);
}
