/** Downloads, from a host and with a browser's cache that are maps. */
import { gzipSync } from "node:zlib";
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

it.each([
  [{ "unet.onnx": 3 }, 3], // of bridge.json
  [undefined, 0], // of a response that is compressed on the way
])("tells the sizes %j as a total of %i", async (sizes, total) => {
  const settings = { ...readSettings(SETTINGS), files: { "unet.onnx": ABC }, sizes };
  const headers = { "content-length": "2", "content-encoding": "gzip" };
  vi.stubGlobal("fetch", async () => new Response("abc", { headers }));
  const progress = vi.fn();
  await download(FOLDER, settings, progress);
  expect(progress.mock.calls).toEqual([[3, total, false]]);
});

it("unpacks what the build compressed, and keeps it unpacked", async () => {
  const settings = { ...readSettings(SETTINGS), files: { "unet.onnx": ABC }, packed: true };
  vi.stubGlobal("fetch", async ({ href }: URL) => {
    expect(href).toBe(`${FOLDER}unet.onnx.gzip?sha256=${ABC}`);
    return new Response(gzipSync("abc"));
  });
  const files = await download(FOLDER, settings, vi.fn());
  expect(new TextDecoder().decode(files.get("unet.onnx"))).toBe("abc");
  expect([...kept.values()]).toEqual(["abc"]);
});

it("says how far a download came that was cut", async () => {
  const settings = { ...readSettings(SETTINGS), files: { "unet.onnx": ABC }, sizes: { "unet.onnx": 18_400_000 } };
  const parts = [new Uint8Array(4_300_000)];
  const pull = (stream: ReadableStreamDefaultController): void => {
    const part = parts.pop();
    if (part) stream.enqueue(part);
    else stream.error(new TypeError("network error"));
  };
  vi.stubGlobal("fetch", async () => new Response(new ReadableStream({ pull })));
  await expect(download(FOLDER, settings, vi.fn())).rejects.toThrow(
    "The download of unet.onnx was cut after 4.3 of 18.4 MB: the connection is gone, or the server stopped",
  );
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
