/** Sizes by headers: of files that Pillow wrote of 300 x 200 pixels, cut after their headers, and of what is no picture. */
import { expect, it } from "vitest";
import { headerSize } from "../src/header";

const FILES = {
  png: "89504e470d0a1a0a0000000d494844520000012c000000c80802",
  "jpeg behind its EXIF":
    "ffd8ffe000104a46494600010100000100010000ffe1004c4578696600004d4d002a000000080001010e0002000000290000001a" +
    "00000000787878787878787878787878787878787878787878787878787878787878787878787878787878780000" +
    "ffc000110800c8012c0301",
  webp: "52494646f80000005745425056503820ec000000f012009d012a2c01c8003e6d",
  "webp, lossless": "524946463a000000574542505650384c2d0000002f2bc131000f30fff33ffff3",
  "webp with EXIF": "524946465601000057454250565038580a000000080000002b0100c7000056503820",
  gif: "4749463837612c01c8008100",
  bmp: "424d56bf02000000000036000000280000002c010000c800000001001800",
};

it.each(Object.entries(FILES))("%s", async (_, hex) => {
  const bytes = Buffer.from(hex, "hex");
  expect(await headerSize(new Blob([bytes]))).toEqual({ width: 300, height: 200 });
  expect(await headerSize(new Blob([bytes.subarray(0, 8)]))).toBeNull();
});

it("knows no size of other files", async () => {
  for (const text of ["", "hello", "<svg/>", "\xff\xd8\xff"]) {
    expect(await headerSize(new Blob([Buffer.from(text, "latin1")]))).toBeNull();
  }
});
