import { describe, expect, it } from "vitest";
import { normal, philox4x32, type Words } from "../src/philox";

// Random123's known answers for philox4x32-10: counter, key, result.
const KNOWN = {
  zeros: ["00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"],
  ones: ["ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"],
  pi: ["243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"],
} as const;

function words(text: string): number[] {
  return text.split(" ").map((word) => parseInt(word, 16));
}

describe("philox4x32", () => {
  it.each(Object.entries(KNOWN))("gives the published words of %s", (_, [counter, key, result]) => {
    expect(philox4x32(words(counter) as Words, words(key) as [number, number])).toEqual(words(result));
  });
});

describe("normal", () => {
  it("is Box-Muller of the published words of zeros: even lane radius, odd lane angle, cosine first", () => {
    const u = words(KNOWN.zeros[2]).map((word) => (Math.floor(word / 512) + 0.5) / 2 ** 23);
    const [first, second] = [Math.sqrt(-2 * Math.log(u[0]!)), Math.sqrt(-2 * Math.log(u[2]!))];
    const [turn, other] = [2 * Math.PI * u[1]!, 2 * Math.PI * u[3]!];
    const expected = [first * Math.cos(turn), first * Math.sin(turn), second * Math.cos(other), second * Math.sin(other)];
    normal(0n, 0, 4).forEach((value, i) => expect(value).toBeCloseTo(expected[i]!, 5));
  });

  it("takes element / 4 and the step as the counter, and the halves of the seed as the key", () => {
    const made = normal((0x299f31d0n << 32n) | 0xa4093822n, 7, 12);
    const block = philox4x32([2, 7, 0, 0], [0xa4093822, 0x299f31d0]);
    const u = block.map((word) => (Math.floor(word / 512) + 0.5) / 2 ** 23);
    expect(made[8]).toBeCloseTo(Math.sqrt(-2 * Math.log(u[0]!)) * Math.cos(2 * Math.PI * u[1]!), 5);
    expect(made[11]).toBeCloseTo(Math.sqrt(-2 * Math.log(u[2]!)) * Math.sin(2 * Math.PI * u[3]!), 5);
  });

  it("has mean 0 and spread 1, within 4 standard errors", () => {
    const made = normal(1n, 0, 2 ** 16);
    const mean = made.reduce((a, b) => a + b) / made.length;
    const variance = made.reduce((a, b) => a + b * b, 0) / made.length;
    expect(Math.abs(mean)).toBeLessThan(4 / 2 ** 8);
    expect(Math.abs(variance - 1)).toBeLessThan((4 * Math.SQRT2) / 2 ** 8);
  });

  it("gives a smaller image the first of a larger one's numbers", () => {
    expect([...normal(3n, 1, 6)]).toEqual([...normal(3n, 1, 101)].slice(0, 6));
  });

  it("gives any of an image's numbers alone", () => {
    expect([...normal(3n, 1, 7, 40)]).toEqual([...normal(3n, 1, 101)].slice(40, 47));
  });

  it("refuses a seed outside [0, 2^63)", () => {
    expect(() => normal(2n ** 63n, 0, 4)).toThrow("seed must be in [0, 2^63), got 9223372036854775808");
    expect(() => normal(-1n, 0, 4)).toThrow("got -1");
  });
});
