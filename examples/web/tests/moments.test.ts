import { expect, it } from "vitest";
import { Moments } from "../src/moments";
import { toPixels } from "../src/pictures";

/** A picture of levels of 0 to 255, channels first. */
function picture(channels: number, levels: number[]) {
  return { data: Float32Array.from(levels, (level) => level / 127.5 - 1), channels, height: 1, width: levels.length / channels };
}

it("has the mean of pictures, and their standard deviation as numpy.std(ddof=1), mean over channels, in levels", () => {
  const moments = new Moments();
  // two pixels, red then green then blue; the deviations are 30 and 0, 0 and 50, 60 and 10
  for (const levels of [[10, 7, 0, 50, 200, 90], [40, 7, 0, 100, 140, 100], [70, 7, 0, 150, 80, 110]]) moments.add(picture(3, levels));
  expect([...toPixels(moments.mean)]).toEqual([40, 0, 140, 255, 7, 100, 100, 255]);
  expect([...toPixels(moments.map)]).toEqual([30, 30, 30, 255, 20, 20, 20, 255]);
});

it("is black where grey pictures agree, and no brighter than their range allows", () => {
  const moments = new Moments();
  for (const levels of [[255, 0], [255, 255]]) moments.add(picture(1, levels));
  expect([...toPixels(moments.map)]).toEqual([0, 0, 0, 255, 180, 180, 180, 255]); // 255 / sqrt(2)
});
