import { expect, it } from "vitest";
import { turns } from "../src/page/turns";

it("says that what began last is the newest, whatever ends first", () => {
  const [begin, other] = [turns(), turns()];
  const [first, second] = [begin(), begin()];
  other();
  expect([second(), first(), second()]).toEqual([true, false, true]);
});
