/** The worker, with a page, a host and an ONNX Runtime that are stubs. */
import { beforeEach, expect, it, vi } from "vitest";
import { readSettings, type Pixels } from "../../src/bbdm";
import { normal } from "../../src/philox";
import type { Reply, Request } from "../../src/protocol";
import { SETTINGS } from "../settings";

const PATIENCE = 4000; // ms: the machine may be busy
const settings = readSettings(SETTINGS);
const told = { classes: {} };
const source: Pixels = { data: new Uint8ClampedArray(4 * 8 * 8), height: 8, width: 8 };
const { download, runtime } = vi.hoisted(() => ({ download: vi.fn(), runtime: vi.fn() }));
vi.mock("../../src/worker/download", () => ({
  download,
  readExport: async () => ({ settings, tables: [] }),
}));
vi.mock("../../src/worker/runtime", () => ({ runtime, threads: 1 }));

const replies: Reply[] = [];
const [run, release] = [vi.fn(), vi.fn()];
let send: (message: Request) => void;

/** Waits for a reply. */
async function until(wanted: Partial<Reply>): Promise<void> {
  await vi.waitFor(() => expect(replies).toContainEqual(expect.objectContaining(wanted)), PATIENCE);
}

function open(): void {
  send({ kind: "open", model: "https://host/model/" });
}

function translate(id: number, device: "wasm" | "webgpu" = "wasm"): void {
  send({ kind: "translate", id, source, byWindows: false, seeds: [0n], table: settings, told, device });
}

/** A network that gives back what it is shown, and takes one call at a time. */
beforeEach(async () => {
  let started = false;
  run.mockReset().mockImplementation(async ({ x }) => {
    if (started) throw new Error("Session already started");
    started = true;
    await new Promise((resolve) => setTimeout(resolve, 10));
    started = false;
    return { output: x };
  });
  const Tensor = vi.fn(function (this: { data: unknown }, _: string, data: unknown) {
    this.data = data;
  });
  const create = async () => ({ outputNames: ["output"], run, release });
  runtime.mockReset().mockResolvedValue({ Tensor, InferenceSession: { create } });
  download.mockReset().mockResolvedValue(new Map([["unet.onnx", new Uint8Array()]]));
  release.mockReset();
  replies.length = 0;
  vi.stubGlobal("self", {
    postMessage: (reply: Reply) => replies.push(reply),
    addEventListener: (_: string, hear: (event: { data: Request }) => void) => {
      send = (data) => hear({ data });
    },
  });
  vi.resetModules();
  await import("../../src/worker/worker");
});

it("begins a translation when the one before has ended, and none that was stopped", async () => {
  open();
  await until({ kind: "ready" });
  translate(1);
  await vi.waitFor(() => expect(run).toHaveBeenCalledOnce(), PATIENCE);
  send({ kind: "stop" });
  translate(2);
  translate(3);
  await until({ kind: "done", id: 3 });
  expect(run).toHaveBeenCalledTimes(2);
  expect(replies.filter(({ kind }) => kind === "failed")).toEqual([]);
});

it("calls the network on windows, for one seed after the other, and stops between calls", async () => {
  open();
  await until({ kind: "ready" });
  const [height, width] = [64, 300]; // 6 windows, in 2 calls
  const large: Pixels = { data: new Uint8ClampedArray(4 * height * width), height, width };
  const seeds = [0n, 1n];
  const request = { kind: "translate", source: large, byWindows: true, seeds, table: settings, told } as const;
  send({ ...request, id: 1, device: "wasm" });
  await until({ kind: "done", id: 1 });
  const windows = (first: number) => [4, 6].map((done) => ({ kind: "windows", id: 1, first, calls: 0, done, total: 6 }));
  const step = (first: number) => ({ kind: "step", id: 1, first, calls: 1, pictures: [expect.objectContaining({ width })] });
  expect(replies.slice(-7)).toEqual([0, 1].flatMap((i) => [...windows(i), step(i)]).concat([replies.at(-1) as never]));
  run.mockClear().mockImplementationOnce(async ({ x }) => {
    send({ kind: "stop" });
    return { output: x };
  });
  send({ ...request, id: 2, device: "wasm" });
  await until({ kind: "windows", id: 2 });
  translate(3);
  await until({ kind: "done", id: 3 });
  expect(run).toHaveBeenCalledTimes(2);
  expect(replies.filter(({ kind }) => kind === "failed")).toEqual([]);
});

it("makes two pictures at a time, so that the first come early", async () => {
  open();
  await until({ kind: "ready" });
  send({ kind: "translate", id: 1, source, byWindows: false, seeds: [0n, 1n, 2n], table: settings, told, device: "wasm" });
  await until({ kind: "done", id: 1 });
  const steps = replies.filter((reply) => reply.kind === "step").map(({ first, pictures }) => [first, pictures.length]);
  expect(steps).toEqual([[0, 2], [2, 1]]);
});

it("compares the pictures that are finished, from the second on", async () => {
  open();
  await until({ kind: "ready" });
  const [seeds, table] = [[3n, 4n, 9n], { ...settings, coefficients: [[0, 0, 0, 0, 0.2]] }]; // pictures of noise alone
  send({ kind: "translate", id: 1, source, byWindows: false, seeds, compared: true, table, told, device: "wasm" });
  await until({ kind: "done", id: 1 });
  const found = replies.flatMap((reply) => (reply.kind === "step" ? [reply.compared!] : []));
  const noise = seeds.map((seed) => normal(seed, 0, 3 * 64));
  [2, 3].forEach((count, step) => {
    for (let pixel = 0; pixel < 64; pixel++) {
      const channels = [0, 1, 2].map((c) => noise.slice(0, count).map((values) => 127.5 * 0.2 * values[64 * c + pixel]!));
      const means = channels.map((values) => values.reduce((a, b) => a + b) / count);
      const squares = channels.map((values, c) => values.reduce((sum, each) => sum + (each - means[c]!) ** 2, 0));
      const deviation = squares.reduce((sum, each) => sum + Math.sqrt(each / (count - 1)) / 3, 0);
      expect(Math.abs(found[step]!.map.data[4 * pixel]! - deviation)).toBeLessThan(0.51);
      means.forEach((mean, c) => expect(Math.abs(found[step]!.mean.data[4 * pixel + c]! - 127.5 - mean)).toBeLessThan(0.51));
    }
  });
});

it("repeats the edge of a picture that is smaller than graphs of one size take", async () => {
  settings.static = [1, 16, 24];
  open();
  await until({ kind: "ready" });
  send({ kind: "translate", id: 1, source, byWindows: true, seeds: [0n], table: settings, told, device: "wasm" });
  await until({ kind: "done", id: 1 });
  settings.static = null;
  expect(run.mock.calls[0]![0].x.data.length).toBe(3 * 16 * 24);
  const picture = expect.objectContaining({ height: 8, width: 8 });
  expect(replies).toContainEqual(expect.objectContaining({ kind: "step", pictures: [picture] }));
});

it("says which translation failed, and goes on", async () => {
  open();
  await until({ kind: "ready" });
  run.mockRejectedValueOnce(new Error("out of memory"));
  translate(1);
  await until({ kind: "failed", id: 1, reason: "out of memory" });
  translate(2);
  await until({ kind: "done", id: 2 });
});

it("downloads again at the next translation where the first download failed", async () => {
  download.mockRejectedValueOnce(new Error("no connection"));
  open();
  await until({ kind: "failed", reason: "no connection" });
  translate(1, "webgpu");
  await until({ kind: "done", id: 1 });
  expect(replies.filter(({ kind }) => kind === "ready")).toEqual([
    { kind: "ready", device: "wasm", threads: 1 },
    { kind: "ready", device: "webgpu", threads: 1 },
  ]);
  expect(download).toHaveBeenCalledTimes(2);
});

it("compares a refused WebGPU again at the next translation, and keeps the first no longer", async () => {
  open();
  await until({ kind: "ready", device: "wasm" });
  const output = (value: number) => ({ output: { data: new Float32Array(3 * 64 * 64).fill(value) } });
  run.mockResolvedValueOnce(output(1)).mockResolvedValueOnce(output(0.5));
  translate(1, "webgpu");
  await until({ kind: "done", id: 1 });
  expect(replies).toContainEqual({ kind: "refused", reason: "one call differs from WASM by 50 %" });
  expect(release).toHaveBeenCalledOnce();
  translate(2, "webgpu");
  await until({ kind: "ready", device: "webgpu" });
});

it("times a call before the first translation, where that is asked for", async () => {
  send({ kind: "open", model: "https://host/model/", timed: true });
  translate(1);
  await until({ kind: "done", id: 1 });
  const [timed, done] = ["timed", "done"].map((kind) => replies.findIndex((each) => each.kind === kind));
  expect(timed).toBeGreaterThan(-1);
  expect(timed).toBeLessThan(done!);
  expect(replies.find((each) => each.kind === "timed")!.seconds).toBeGreaterThan(0.005);
});

it("keeps another export where there is a cache, while a translation goes on", async () => {
  open();
  await until({ kind: "ready" });
  send({ kind: "keep", model: "https://host/other/" });
  await new Promise((resolve) => setTimeout(resolve));
  expect(download).toHaveBeenCalledTimes(1);
  vi.stubGlobal("self", { ...self, caches: {} });
  translate(1);
  send({ kind: "keep", model: "https://host/other/" });
  await until({ kind: "done", id: 1 });
  expect(download.mock.calls.map(([folder]) => folder.href)).toEqual(["https://host/model/", "https://host/other/"]);
});
