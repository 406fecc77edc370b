/** The size of a picture by the first bytes of its file, before a browser decodes it. Needs no DOM. */
import { SIGNATURE } from "./png";

const READ = 2 ** 20; // bytes: a JPEG may have a thumbnail and a colour profile before its size
const SIZELESS = [0xc4, 0xc8, 0xcc]; // markers of a JPEG among those of frames, which hold a size

export interface Size {
  height: number;
  width: number;
}

/** Height and width of a PNG, JPEG, WebP, GIF or BMP as its file has them; null of others. */
export async function headerSize(file: Blob): Promise<Size | null> {
  const bytes = new DataView(await file.slice(0, READ).arrayBuffer());
  try {
    return png(bytes) ?? jpeg(bytes) ?? webp(bytes) ?? gif(bytes) ?? bmp(bytes);
  } catch (error) {
    if (error instanceof RangeError) return null; // the file ends too early
    throw error;
  }
}

function begins(bytes: DataView, text: string, at = 0): boolean {
  return bytes.byteLength >= at + text.length && [...text].every((each, i) => bytes.getUint8(at + i) === each.charCodeAt(0));
}

function png(bytes: DataView): Size | null {
  if (!begins(bytes, String.fromCharCode(...SIGNATURE))) return null;
  return { width: bytes.getUint32(16), height: bytes.getUint32(20) };
}

/** Of the first frame: segments before it have a length each. */
function jpeg(bytes: DataView): Size | null {
  if (!begins(bytes, "\xff\xd8\xff")) return null;
  for (let at = 2; ; at += 2 + bytes.getUint16(at + 2)) {
    while (bytes.getUint8(at + 1) === 0xff) at++; // bytes that fill
    const marker = bytes.getUint8(at + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && !SIZELESS.includes(marker);
    if (frame) return { height: bytes.getUint16(at + 5), width: bytes.getUint16(at + 7) };
  }
}

function webp(bytes: DataView): Size | null {
  if (!begins(bytes, "RIFF") || !begins(bytes, "WEBP", 8)) return null;
  if (begins(bytes, "VP8 ", 12)) {
    return { width: bytes.getUint16(26, true) & 0x3fff, height: bytes.getUint16(28, true) & 0x3fff };
  }
  if (begins(bytes, "VP8L", 12)) {
    const packed = bytes.getUint32(21, true); // 14 bits of width, then 14 of height, each less 1
    return { width: (packed & 0x3fff) + 1, height: ((packed >>> 14) & 0x3fff) + 1 };
  }
  if (!begins(bytes, "VP8X", 12)) return null;
  const of24 = (at: number): number => bytes.getUint16(at, true) + 2 ** 16 * bytes.getUint8(at + 2);
  return { width: of24(24) + 1, height: of24(27) + 1 };
}

function gif(bytes: DataView): Size | null {
  if (!begins(bytes, "GIF8")) return null;
  return { width: bytes.getUint16(6, true), height: bytes.getUint16(8, true) };
}

function bmp(bytes: DataView): Size | null {
  if (!begins(bytes, "BM")) return null;
  if (bytes.getUint32(14, true) === 12) return { width: bytes.getUint16(18, true), height: bytes.getUint16(20, true) };
  return { width: bytes.getInt32(18, true), height: Math.abs(bytes.getInt32(22, true)) }; // below 0: rows from the top
}
