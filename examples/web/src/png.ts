/** Texts in PNG files (tEXt): a result carries the drawing and the seed that it was made of. Needs no DOM. */

export const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEADER = SIGNATURE.length + 25; // where IHDR, the first chunk, ends
const KEYWORD = "bbdm";

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** A chunk of a PNG: its length, type, data and CRC. */
export function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const made = new Uint8Array(12 + data.length);
  const view = new DataView(made.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) made[4 + i] = type.charCodeAt(i);
  made.set(data, 8);
  let crc = 0xffffffff;
  for (const byte of made.subarray(4, 8 + data.length)) crc = TABLE[(crc ^ byte) & 255]! ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc >>> 0);
  return made;
}

/** A PNG with a text of ASCII in it. */
export function withText(png: Uint8Array<ArrayBuffer>, text: string): Blob {
  const data = Uint8Array.from(`${KEYWORD}\0${text}`, (each) => each.charCodeAt(0));
  return new Blob([png.subarray(0, HEADER), chunk("tEXt", data), png.subarray(HEADER)], { type: "image/png" });
}

/** The text that {@link withText} put into a file; undefined in all others. */
export function textOf(file: Uint8Array<ArrayBuffer>): string | undefined {
  if (SIGNATURE.some((byte, i) => file[i] !== byte)) return undefined;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  for (let at = SIGNATURE.length; at + 12 <= file.length; at += 12 + view.getUint32(at)) {
    const content = file.subarray(at + 4, at + 8 + view.getUint32(at));
    const text = String.fromCharCode(...content.subarray(0, 4 + KEYWORD.length + 1));
    if (text === `tEXt${KEYWORD}\0`) return new TextDecoder("latin1").decode(content.subarray(text.length));
  }
  return undefined;
}
