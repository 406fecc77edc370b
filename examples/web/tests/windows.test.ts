import { describe, expect, it, vi } from "vitest";
import { readSettings, windowCount, windowSize } from "../src/bbdm";
import { blend, spread, type Shape } from "../src/windows";
import { SETTINGS } from "./settings";

describe("spread", () => {
  it.each([
    [64, [0]], // one window
    [72, [0, 8]],
    [96, [0, 32]], // 4 units are free, and 6 of 8 may lie between two
    [200, [0, 40, 88, 136]], // 17 are free: 3 gaps of 17 / 3
  ])("spreads windows of 64 over %i, which overlap by 16 at least, in multiples of 8", (size, starts) => {
    const made = spread(size, 64, 0.25, 8);
    expect(made.starts).toEqual(starts);
    const total = new Float64Array(size);
    made.weights.forEach((weights, i) => weights.forEach((weight, k) => (total[starts[i]! + k]! += weight)));
    total.forEach((sum) => expect(sum).toBeCloseTo(1, 12));
  });

  it("weighs windows by a Gaussian of an eighth of their length, and no less than 1e-3 of its peak", () => {
    const [left, right] = spread(96, 64, 0.25, 8).weights as [Float64Array, Float64Array];
    // Pixel 40 is 8.5 beyond the middle of the left window, and 23.5 before that of the right one; 33 is 1.5 and 30.5
    expect(left[40]! / right[8]!).toBeCloseTo(Math.exp((23.5 ** 2 - 8.5 ** 2) / (2 * 8 ** 2)), 9);
    expect(left[33]! / right[1]!).toBeCloseTo(Math.exp(-(1.5 ** 2) / (2 * 8 ** 2)) / 1e-3, 6);
    expect(left[0]).toBe(1);
  });
});

describe("blend", () => {
  it("gives back images where the network does, and reports each call", async () => {
    const shape: Shape = [2, 12, 20];
    const image = Float32Array.from({ length: 2 * 12 * 20 }, (_, i) => Math.sin(i));
    const [sides, sum, report] = [[spread(12, 8, 0.5, 2), spread(20, 8, 0.5, 2)], new Float32Array(image.length), vi.fn()];
    const network = vi.fn(async ([, second]: Float32Array[], _: Shape) => second!);
    await blend([image.map(() => NaN), image], shape, [sides[0]!, sides[1]!], 3, network, sum, report);
    sum.forEach((value, i) => expect(value).toBeCloseTo(image[i]!, 6));
    expect(report.mock.calls).toEqual([[3, 8], [6, 8], [8, 8]]);
    expect(network.mock.calls.map(([windows, of]) => [windows[0]!.length, of])).toEqual(
      [3, 3, 2].map((count) => [count * 2 * 8 * 8, [2, 8, 8]]),
    );
  });
});

describe("windows of an export", () => {
  const settings = readSettings({ ...SETTINGS, image_size: [64, 50] });

  it("have the size of training pictures or crops, in multiples of the stride, or the only size of the graphs", () => {
    expect(windowSize(settings)).toEqual([64, 48]);
    expect(windowSize({ ...settings, crop: 32 })).toEqual([32, 32]);
    expect(windowSize({ ...settings, crop: 32, static: [1, 16, 24] })).toEqual([16, 24]);
  });

  it("are counted where a picture is larger", () => {
    expect(windowCount(settings, 64, 48)).toBe(0);
    expect(windowCount(settings, 60, 49)).toBe(2); // padded to 56
    expect(windowCount({ ...settings, static: [1, 64, 48] }, 60, 49)).toBe(0); // the graphs take no 60
    expect(windowCount({ ...settings, image_size: 64 }, 96, 200)).toBe(8);
  });
});
