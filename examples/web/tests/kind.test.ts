/** Synthetic pictures here, and those that tests/cli/test_web_library.py wrote. */
import { existsSync, readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { kindOf, type Kind } from "../src/kind";

interface Case {
  name: string;
  kind: Kind;
  data: number[];
}

const FILE = process.env.BBDM_CASES ?? "";
const CASES: Case[] = existsSync(FILE) ? JSON.parse(readFileSync(FILE, "utf8")).kinds : [];

/** A picture of 100 pixels. */
function of(...parts: [count: number, ...colour: number[]][]): Kind {
  const data = parts.flatMap(([count, ...colour]) => Array(count).fill(colour).flat());
  expect(data.length).toBe(400);
  return kindOf({ data: Uint8ClampedArray.from(data), height: 10, width: 10 });
}

it("tells lines on white from what has colours, dark areas, or no white", () => {
  const [white, black, red, grey] = [[255, 255, 255, 255], [0, 0, 0, 255], [200, 30, 30, 255], [150, 140, 130, 255]];
  expect(of([80, ...white], [20, ...black])).toBe("lines");
  expect(of([80, 0, 0, 0, 0], [20, ...black])).toBe("lines"); // transparent is white
  expect(of([80, ...white], [10, ...black], [10, ...red!])).toBe("filled");
  expect(of([45, ...white], [55, ...black])).toBe("filled");
  expect(of([10, ...white], [90, ...grey])).toBe("photograph");
});

it("tells what was cut out: a photograph has many colours, a drawing few, and what is transparent is white", () => {
  const colours = (count: number): [number, ...number[]][] =>
    Array.from({ length: count }, (_, i) => [40 / count, 6 * i, 255 - 6 * i, 100, 255]);
  expect(of([60, 0, 0, 0, 0], ...colours(40))).toBe("photograph");
  expect(of([60, 0, 0, 0, 0], ...colours(4))).toBe("filled");
  expect(of([60, 255, 255, 255, 255], ...colours(40))).toBe("filled"); // on white, as before
});

it.skipIf(!CASES.length)("tells drawings, coloured ones and photographs of files", () => {
  const got = CASES.map(({ name, data }) => [name, kindOf({ data: Uint8ClampedArray.from(data), height: 1, width: 1 })]);
  expect(got).toEqual(CASES.map(({ name, kind }) => [name, kind]));
});
