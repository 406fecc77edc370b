import { describe, expect, it } from "vitest";
import { Bridge, fromPixels, pictureSize, readSettings, readTable, sample, toPixels, type Table, type Told } from "../src/bbdm";
import { normal } from "../src/philox";
import { SETTINGS } from "./settings";

async function states(table: Table, y: number[], seeds: bigint[], network: (shown: number, time: number) => number) {
  const made: number[][] = [];
  const called = async (shown: Float32Array, time: number) => shown.map((value) => network(value, time));
  for await (const { x } of sample(table, Float32Array.from(y), seeds, called)) made.push([...x]);
  return made;
}

describe("sample", () => {
  it("is the table's arithmetic: two steps without noise, by hand", async () => {
    const table = {
      solver: "by hand",
      timesteps: [10, 4],
      prediction: [[0, 1, 0.5], [1, 0, -1]],
      coefficients: [[0.5, 0.25, 2, 0, 0], [0, 0, 1, 0.5, 0]],
    };
    // x = y = 4; F = x + t = 14; x0hat = 4 + 7 = 11; x = 2 + 1 + 22 = 25
    // F = 25 + 4 = 29; x0hat = 25 - 29 = -4; x = -4 + 11 / 2 = 1.5
    expect(await states(table, [4], [0n], (x, t) => x + t)).toEqual([[25], [1.5]]);
  });

  it("shows the network the inputs' weights of x and y, and the network's own times", async () => {
    const table = {
      solver: "by hand",
      timesteps: [10, 4],
      prediction: [[0, 0, 1], [0, 0, 1]],
      coefficients: [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
      inputs: [[0.5, 0.25], [2, -1]],
      network_times: [0.5, 0.125],
    };
    // y = 8: shown 4 + 2 = 6, at 0.5: 6.5; then shown 13 - 8 = 5, at 0.125: 5.125
    expect(await states(table, [8], [0n], (x, t) => x + t)).toEqual([[6.5], [5.125]]);
  });

  it("adds noise of the image's seed and the row, and starts with the last row's", async () => {
    const table = {
      solver: "by hand",
      timesteps: [10, 4],
      prediction: [[0, 0, 1], [0, 0, 1]],
      coefficients: [[1, 0, 0, 0, 2], [0, 0, 1, 0, 0]],
      start: [0.5, 0.25],
    };
    const [first] = await states(table, [8, 8], [3n, 5n], (x) => x);
    [3n, 5n].forEach((seed, i) => {
      expect(first![i]).toBeCloseTo(4 + 0.25 * normal(seed, 1, 1)[0]! + 2 * normal(seed, 0, 1)[0]!, 5);
    });
  });

  it("numbers the noise of large images through", async () => {
    const table = { solver: "by hand", timesteps: [1], prediction: [[0, 0, 1]], coefficients: [[0, 0, 0, 0, 1]] };
    const size = 2 ** 16 + 5;
    const [made] = await states(table, Array(2 * size).fill(0), [3n, 5n], (x) => x);
    expect(made).toEqual([...normal(3n, 0, size), ...normal(5n, 0, size)]);
  });
});

describe("classes", () => {
  const calls: number[][] = [];
  /** A network whose output is a tenth of the class. */
  const run = async ({ x, style }: Record<string, { data: Float32Array | BigInt64Array }>) => {
    const [classes, values] = [Array.from(style!.data, Number), x!.data as Float32Array];
    calls.push(classes);
    return { output: { data: values.map((_, i) => classes[Math.floor((i * classes.length) / values.length)]! / 10) } };
  };
  const runtime = {
    Tensor: class {
      constructor(_: string, readonly data: unknown) {}
    },
    InferenceSession: { create: async () => ({ outputNames: ["output"], run }) },
  };
  const source = { data: new Float32Array(3 * 8 * 8), channels: 3, height: 8, width: 8 };

  async function made(told: Told | undefined, more: object = {}, window?: [number, number]): Promise<number[]> {
    calls.length = 0;
    const settings = { ...SETTINGS, version: 6, classes: { style: ["ink", "oil"] }, drop: { style: 0.1 }, ...more };
    const given = readSettings({ ...settings, prediction: [[0, 0, 1]] });
    const bridge = await Bridge.load(given, new Map([["unet.onnx", new Uint8Array()]]), runtime as never);
    const windows = window && { size: window };
    const pictures = await bridge.translate(source, [0n, 1n], undefined, windows, told);
    return pictures.map(({ data }) => {
      expect(Math.max(...data) - Math.min(...data)).toBeLessThan(1e-6);
      return Number(data[0]!.toFixed(5));
    });
  }

  it("are numbers, the first if none is given, and one after the last if it is left out", async () => {
    expect(await made(undefined)).toEqual([0, 0]);
    expect(await made({ classes: { style: 1 } })).toEqual([0.1, 0.1]);
    expect(await made({ classes: {} })).toEqual([0.2, 0.2]);
    expect(calls).toEqual([[2, 2]]);
    await expect(made({ classes: { style: 3 } })).rejects.toThrow("style must be a class from 0 to 2, got 3");
    await expect(made({ classes: {} }, { drop: {} })).rejects.toThrow("style must be a class from 0 to 1");
  });

  it("are guided in one batch, or in calls of the only size: 0.1 + 2 (0.1 - 0.2)", async () => {
    const told = { classes: { style: 1 }, guidance: 3 };
    expect(await made(told)).toEqual([-0.1, -0.1]);
    expect(calls).toEqual([[1, 1, 2, 2]]);
    expect(await made(told, { static: [1, 8, 8] })).toEqual([-0.1, -0.1]);
    expect(calls).toEqual([[1], [1], [2], [2]]);
    expect(await made(told, { static: [3, 8, 8] })).toEqual([-0.1, -0.1]);
    expect(calls).toEqual([[1, 1, 2], [2, 2, 2]]);
    expect(await made(told, { stride: 4 }, [8, 4])).toEqual([-0.1, -0.1]);
    expect(calls).toEqual([[1, 1, 2, 2], [1, 1, 2, 2]]); // two windows of each picture
    await expect(made(told, { drop: {} })).rejects.toThrow("guidance needs a network that was trained without");
  });
});

describe("readSettings", () => {
  it.each([1, 2, 3, 4, 6])("reads version %i", (version) => {
    expect(readSettings({ ...SETTINGS, version }).solver).toBe("dpm2m");
  });

  it.each([
    [null, "bridge.json has the format undefined"],
    [{ ...SETTINGS, format: "other" }, 'bridge.json has the format "other", not "bbdm onnx"'],
    [{ ...SETTINGS, version: 7 }, "bridge.json is of version 7; this library reads up to 6"],
    [{ ...SETTINGS, version: 5, axes: 3 }, "bridge.json has axes: this library is for"],
    [{ ...SETTINGS, version: 5, stride: [8, 4] }, "bridge.json has a stride for each axis"],
    [
      { ...SETTINGS, version: 6, images: { sar: 2 }, tokens: { text: 8 } },
      "this network is told sar, text: images and tokens, which a page cannot give",
    ],
    [{ ...SETTINGS, version: 4, source_channels: 1 }, "bridge.json has source_channels: this library is for"],
    [{ ...SETTINGS, stride: undefined }, "bridge.json lacks stride"],
    [{ ...SETTINGS, files: {} }, "bridge.json lists no unet.onnx"],
    [{ ...SETTINGS, files: { "unet.onnx": "", "unet.onnx.data": "" } }, "bridge.json lists no unet.onnx"],
    [{ ...SETTINGS, files: { "unet.onnx": "a", "unet.onnx.data": "b" } }, "export it with --no-external-data"],
    [{ ...SETTINGS, prediction: [[1, 0]] }, "prediction must be 1 rows of 3 numbers"],
  ])("refuses %#", (settings, message) => {
    expect(() => readSettings(settings)).toThrow(message);
  });

  it("refuses a table of other lengths", () => {
    expect(() => readTable({ ...SETTINGS, inputs: [] })).toThrow("inputs must be 1 rows of 2 numbers");
    expect(() => readTable({ ...SETTINGS, timesteps: [] })).toThrow("a table needs timesteps, at least one");
  });
});

describe("pictures", () => {
  it("have the size of the training pictures, or the only one that the export takes", () => {
    const settings = readSettings(SETTINGS);
    expect(pictureSize(settings)).toEqual([64, 64]);
    expect(pictureSize({ ...settings, image_size: 16 })).toEqual([16, 16]);
    expect(pictureSize({ ...settings, image_size: [16, 24] })).toEqual([16, 24]);
    expect(pictureSize({ ...settings, image_size: 16, static: [2, 32, 8] })).toEqual([32, 8]);
  });

  it("are channels first in [-1, 1], and come back", () => {
    const pixels = Uint8ClampedArray.of(255, 0, 51, 255, 0, 102, 255, 255);
    const picture = fromPixels(pixels, 1, 2, 3);
    [1, -1, -1, -0.2, -0.6, 1].forEach((value, i) => expect(picture.data[i]).toBeCloseTo(value, 6));
    expect(toPixels(picture)).toEqual(pixels);
  });

  it("are grey for one channel, as Pillow makes it", () => {
    const picture = fromPixels(Uint8ClampedArray.of(200, 100, 50, 255), 1, 1, 1);
    expect(toPixels(picture).slice(0, 3)).toEqual(Uint8ClampedArray.of(124, 124, 124)); // Image.convert("L"): 124
  });

  it("are clipped and rounded half to even, as NumPy rounds", () => {
    const data = Float32Array.of(-3, 3, 0); // 0 is 127.5
    expect([...toPixels({ data, channels: 3, height: 1, width: 1 })]).toEqual([0, 255, 128, 255]);
  });
});
