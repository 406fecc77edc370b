import { expect, it } from "vitest";
import { isWhite } from "../src/pictures";

it.each([
  [255, true],
  [250, true], // as JPEG changes white
  [249, false],
])("is white all over with one value of %i: %s", (value, white) => {
  const data = Uint8ClampedArray.of(255, 255, 255, 255, 255, value, 255, 255);
  expect(isWhite({ data, height: 1, width: 2 })).toBe(white);
});
