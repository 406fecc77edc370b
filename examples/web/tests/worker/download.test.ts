/** Downloads, from a host and with a browser's cache that are maps. */
import { beforeEach, expect, it, vi } from "vitest";
import { readSettings } from "../../src/bbdm";
import { download, readExport } from "../../src/worker/download";
import { SETTINGS } from "../settings";

const FOLDER = new URL("https://host/model/");
const host = new Map<string, string>(); // content by the file's name
const kept = new Map<string, string>(); // and by address
const ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // SHA-256 of "abc": FIPS 180
const cache = {
  match: async ({ href }: URL) => (kept.has(href) ? new Response(kept.get(href)) : undefined),
  put: async ({ href }: URL, response: Response) => void kept.set(href, await response.text()),
  delete: async ({ href }: URL) => kept.delete(href),
  keys: async () => [...kept.keys()].map((href) => new URL(href)),
};

beforeEach(() => {
  host.clear();
  kept.clear();
  vi.stubGlobal("self", globalThis);
  vi.stubGlobal("caches", { open: async () => cache });
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

it("fetches a file again that is damaged in the cache, and keeps it", async () => {
  const settings = { ...readSettings(SETTINGS), files: { "unet.onnx": ABC } };
  const address = `${FOLDER}unet.onnx?sha256=${ABC}`;
  kept.set(address, "damaged");
  host.set("unet.onnx", "abc");
  const files = await download(FOLDER, settings, vi.fn());
  expect(new TextDecoder().decode(files.get("unet.onnx"))).toBe("abc");
  expect(kept).toEqual(new Map([[address, "abc"]]));
  host.set("unet.onnx", "damaged");
  kept.set(address, "damaged");
  await expect(download(FOLDER, settings, vi.fn())).rejects.toThrow("is not what bridge.json describes");
});
