import { describe, expect, it } from "vitest";
import { decode, encode, GRID, rasterize, type Sketch, type Stroke } from "../src/strokes";

/** What is black of a drawing, in pixels. */
function ink(sketch: Sketch, height: number, width: number, line?: number): number {
  const { data } = rasterize(sketch, height, width, line);
  return data.reduce((sum, value, i) => sum + (i % 4 ? 0 : (255 - value) / 255), 0);
}

function stroke(points: number[], erases = false): Stroke {
  return { points, erases };
}

describe("rasterize", () => {
  const [unit, middle] = [GRID / 64, GRID / 2];

  it.each([
    [64, 64, 2, 1],
    [64, 64, 5, 1],
    [128, 128, 2, 4], // pixels of half the side
    [64, 48, 2, 1], // of the longer side
  ])("draws a line of 20 pixels of 64 with round ends at %i x %i, width %d", (height, width, line, factor) => {
    const from = 10 * unit;
    const drawn = { strokes: [stroke([from, middle, from + 20 * unit, middle])], base: null };
    const area = 20 * line + (Math.PI * line ** 2) / 4;
    expect(Math.abs(ink(drawn, height, width, line) / factor / area - 1)).toBeLessThan(0.01);
  });

  it("draws a dot of one point", () => {
    const drawn = { strokes: [stroke([middle + 3, middle + 5])], base: null };
    expect(Math.abs(ink(drawn, 64, 64, 4) / (4 * Math.PI) - 1)).toBeLessThan(0.02);
  });

  it("erases what is below alone, and shows the picture elsewhere", () => {
    const base = { data: new Uint8ClampedArray(4 * 64 * 64).fill(100), height: 64, width: 64 };
    const line = [0, middle, GRID, middle];
    const pixel = (strokes: Stroke[], at: number): number => rasterize({ strokes, base }, 64, 64).data[4 * (64 * at + 32)]!;
    expect(pixel([stroke(line), stroke(line, true)], 31)).toBe(255);
    expect(pixel([stroke(line, true), stroke(line)], 31)).toBe(0);
    expect(pixel([stroke(line, true), stroke(line)], 20)).toBe(100);
  });
});

describe("encode", () => {
  it("writes lengths and steps, 7 bits a byte", () => {
    expect(encode([stroke([0, 0, 1, -1])])).toBe("BAAAAgE"); // 4 numbers, 0, 0, 2 * 1, 2 * 1 - 1
    expect(encode([stroke([64, 0], true)])).toBe("A4ABAA"); // 2 numbers and 1 for erasing, 128 as 0x80 0x01, 0
  });

  it("is undone by decode", () => {
    const strokes = [stroke([1024, 0, 0, 1024, -300, 7]), stroke([5, 5], true), stroke([])];
    expect(decode(encode(strokes))).toEqual(strokes);
    expect(decode("")).toEqual([]);
  });

  it.each([
    ["BAAA", "cut short"],
    ["gA", "cut short"],
    ["A", "the text is damaged"],
    ["%%%", "the text is damaged"],
    ["AoCAAQA", "far from its sheet"],
  ])("is not of %j", (text, message) => {
    expect(() => decode(text)).toThrow(message);
  });
});
