/** Loads an export and translates, beside the page, so that the page never waits. */
import { Bridge, fromPixels, toPixels, windowSize, type Picture, type Pixels, type Settings } from "../bbdm";
import { Moments } from "../moments";
import { atLeast, crop } from "../pictures";
import type { Compared, Device, Reply, Request } from "../protocol";
import { download, readExport } from "./download";
import { runtime, threads } from "./runtime";

const TOGETHER = 2; // pictures in a network call
const AGREES = { fp32: 1e-3, other: 2e-2 }; // a difference of the largest value, by the type of the weights

let settings: Settings;
let files: () => Promise<Map<string, Uint8Array>>;
let running: number | undefined; // the translation that goes on; others stop
let work = Promise.resolve(); // translations, one after the other: a session takes one call at a time
const bridges = { wasm: once(() => start("wasm")), webgpu: once(() => start("webgpu")) };

function reply(message: Reply, given: Transferable[] = []): void {
  self.postMessage(message, { transfer: given });
}

/** Lets a request to stop be heard. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

/** Downloads an export into the browser's cache, where there is one; without it, it is fetched when it is asked for. */
async function keep(model: string): Promise<void> {
  if (!("caches" in self)) return;
  const folder = new URL(model);
  const read = await readExport(folder);
  await download(folder, read.settings, () => undefined);
}

async function open(model: string): Promise<Bridge> {
  const folder = new URL(model);
  const read = await readExport(folder);
  settings = read.settings;
  reply({ kind: "opened", ...read });
  files = once(() =>
    download(folder, settings, (loaded, total, cached) => reply({ kind: "loading", loaded, total, cached })),
  );
  return bridges.wasm();
}

/** Tells how long a call on a window takes. */
async function time(bridge: Bridge): Promise<void> {
  const seconds = await bridge.time();
  if (seconds !== null) reply({ kind: "timed", seconds });
}

/** What is made at the first call and kept; after a failure, the next call makes it again. */
function once<T>(make: () => Promise<T>): () => Promise<T> {
  let kept: Promise<T> | undefined;
  return () =>
    (kept ??= make().catch((error: unknown) => {
      kept = undefined;
      throw error;
    }));
}

async function start(device: Device): Promise<Bridge> {
  const fetched = runtime(device); // beside the files
  fetched.catch(() => undefined); // it is awaited below
  const content = await files();
  reply({ kind: "starting", device });
  const made = await Bridge.load(settings, content, await fetched, [device]);
  if (device === "webgpu") {
    const off = await (await bridges.wasm()).difference(made);
    if (off > (settings.dtype === "fp32" ? AGREES.fp32 : AGREES.other)) {
      await made.release();
      throw new Error(`one call differs from WASM by ${(100 * off).toPrecision(2)} %`);
    }
  }
  reply({ kind: "ready", device, threads: device === "wasm" ? threads : 1 });
  return made;
}

/** WebGPU where it starts and agrees with WASM, and else WASM. */
async function chosen(device: Device): Promise<Bridge> {
  const wasm = await bridges.wasm();
  try {
    return await bridges[device]();
  } catch (error) {
    reply({ kind: "refused", reason: text(error) });
    return wasm;
  }
}

async function translate(request: Request & { kind: "translate" }): Promise<void> {
  const { id, byWindows, seeds, table, told } = request;
  const used = await chosen(request.device);
  if (id !== running) return;
  const begun = performance.now();
  const { data, height, width } = request.source;
  const given = fromPixels(data, height, width, settings.image_channels);
  const source = byWindows && settings.static ? atLeast(given, windowSize(settings)) : given;
  const latent = settings.latent_stride > 1; // a decoder costs more than a step: only the result is shown
  const together = byWindows ? 1 : TOGETHER;
  const moments = request.compared ? new Moments() : undefined;
  for (let first = 0; first < seeds.length; first += together) {
    const group = seeds.slice(first, first + together);
    let calls = 0;
    const report = async (done: number, total: number): Promise<void> => {
      reply({ kind: "windows", id, first, calls, done, total });
      await pause();
      if (id !== running) throw new Error("stopped");
    };
    const windows = byWindows ? { size: windowSize(settings), report } : undefined;
    for await (const { index, x, x0hat } of used.stream(source, group, table, windows, told)) {
      const last = index === table.timesteps.length - 1;
      const shown = latent && !last ? [] : await used.pictures(last ? x : x0hat, source);
      const cropped = shown.map((picture) => crop(picture, given));
      if (id !== running) return;
      if (last && moments) for (const picture of cropped) moments.add(picture);
      const compared = last && moments && moments.count > 1 ? comparison(moments) : undefined;
      const pictures = cropped.map(pixels);
      calls = index + 1;
      reply({ kind: "step", id, first, calls, pictures, compared }, pictures.map(({ data }) => data.buffer));
      await pause();
      if (id !== running) return;
    }
  }
  reply({ kind: "done", id, seconds: (performance.now() - begun) / 1000 });
}

function comparison({ mean, map }: Moments): Compared {
  return { mean: pixels(mean), map: pixels(map) };
}

function pixels(picture: Picture): Pixels {
  return { data: toPixels(picture), height: picture.height, width: picture.width };
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

self.addEventListener("message", ({ data }: MessageEvent<Request>) => {
  const id = data.kind === "translate" ? data.id : undefined;
  const failed = (error: unknown): void => reply({ kind: "failed", id, reason: text(error) });
  if (data.kind === "keep") {
    keep(data.model).catch(() => undefined); // what is missing is fetched when it is asked for
    return;
  }
  running = id;
  if (data.kind === "open") {
    const opened = open(data.model);
    opened.catch(failed);
    if (data.timed) work = work.then(() => opened).then(time, () => undefined); // before translations that wait for it
  }
  if (data.kind === "translate") {
    work = work.then(() => translate(data)).catch((error) => {
      if (id === running) failed(error); // not of one that was stopped
    });
  }
});
