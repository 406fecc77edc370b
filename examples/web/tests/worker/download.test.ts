/** Downloads, from a host and with a browser's cache that are maps of addresses to content. */
import { beforeEach, expect, it, vi } from "vitest";
import { readExport } from "../../src/worker/download";
import { SETTINGS } from "../settings";

const FOLDER = new URL("https://host/model/");
const host = new Map<string, string>(); // by the file's name

beforeEach(() => {
  host.clear();
  vi.stubGlobal("fetch", async ({ pathname }: URL) => {
    const content = host.get(pathname.split("/").at(-1)!);
    return new Response(content, { status: content === undefined ? 404 : 200 });
  });
});

it.each([
  ["a row is too short", { bridge: SETTINGS.bridge, tables: [{ ...SETTINGS, prediction: [[0, 1]] }] }],
  ["a table is null", { bridge: SETTINGS.bridge, tables: [null] }],
  ["there are no tables", { bridge: SETTINGS.bridge }],
  ["it is null", null],
])("opens an export without its tables.json where %s", async (_, content) => {
  const warn = vi.spyOn(console, "warn").mockReturnValue();
  host.set("bridge.json", JSON.stringify(SETTINGS)).set("tables.json", JSON.stringify(content));
  expect(await readExport(FOLDER)).toEqual({ settings: SETTINGS, tables: [] });
  expect(warn).toHaveBeenCalledWith("tables.json is not used:", expect.any(Error));
  warn.mockRestore();
});
