import { expect, it } from "vitest";
import { chunk, SIGNATURE, textOf, withText } from "../src/png";

const header = chunk("IHDR", Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0));
const end = chunk("IEND", new Uint8Array());
const picture = Uint8Array.from([...SIGNATURE, ...header, ...end]);

it("writes chunks with the CRC of every PNG's last one", () => {
  expect([...end]).toEqual([0, 0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82]);
});

it("reads the text that a PNG was given, and none of other files", async () => {
  const made = new Uint8Array(await withText(picture, "seed=7&drawing=BAAAAgE").arrayBuffer());
  expect(textOf(made)).toBe("seed=7&drawing=BAAAAgE");
  for (const other of [picture, made.slice(0, 40), made.slice(1), new Uint8Array()]) expect(textOf(other)).toBeUndefined();
});
