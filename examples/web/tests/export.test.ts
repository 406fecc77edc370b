/** An export in ONNX Runtime against the pictures that Python makes of it; tests/cli/test_web_library.py writes both. */
import { existsSync, readFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";
import { expect, it } from "vitest";
import { Bridge, graphs, readSettings, type Picture, type Table, type Told } from "../src/bbdm";
import { spread } from "../src/windows";

interface Case {
  folder: string;
  table: Table | null; // null for the export's own
  window: [number, number] | null; // null for the network on the whole source
  told: Told | null;
  source: { data: number[]; channels: number; height: number; width: number };
  seeds: string[];
  results: number[][]; // one for each seed
  within: number; // the greatest difference
}

interface Sides {
  given: [size: number, length: number, overlap: number, unit: number];
  starts: number[];
  weights: number[][];
}

const FILE = process.env.BBDM_CASES ?? "";
const WRITTEN = existsSync(FILE) ? JSON.parse(readFileSync(FILE, "utf8")) : { cases: [], sides: [] };
const [CASES, SIDES]: [Case[], Sides[]] = [WRITTEN.cases, WRITTEN.sides];
ort.env.wasm.numThreads = 1;

it.skipIf(!SIDES.length)("has the windows of Python", () => {
  for (const { given, starts, weights } of SIDES) {
    const made = spread(...given);
    expect(made.starts, String(given)).toEqual(starts);
    const off = made.weights.flatMap((each, i) => [...each].map((weight, k) => Math.abs(weight - weights[i]![k]!)));
    expect(Math.max(...off), String(given)).toBeLessThan(1e-12);
  }
});

it.skipIf(!CASES.length)("makes the pictures of Python", { timeout: 300_000 }, async () => {
  for (const { folder, table, window, told, source, seeds, results, within } of CASES) {
    const settings = readSettings(JSON.parse(readFileSync(`${folder}/bridge.json`, "utf8")));
    const files = new Map(graphs(settings).map((name) => [name, new Uint8Array(readFileSync(`${folder}/${name}`))]));
    const bridge = await Bridge.load(settings, files, ort);
    const picture: Picture = { ...source, data: Float32Array.from(source.data) };
    const windows = window ? { size: window } : undefined;
    const made = await bridge.translate(picture, seeds.map(BigInt), table ?? settings, windows, told ?? undefined);
    const off = made.map(({ data }, i) => Math.max(...data.map((value, j) => Math.abs(value - results[i]![j]!))));
    expect(made.map(({ height, width }) => [height, width])).toEqual(seeds.map(() => [source.height, source.width]));
    expect(Math.max(...off), `${folder}, ${table?.solver ?? "its own table"}, ${window}`).toBeLessThan(within);
    expect(await bridge.difference(bridge)).toBe(0);
    await bridge.release();
  }
});
