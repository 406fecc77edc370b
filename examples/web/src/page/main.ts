/** The page: a sheet to draw on, the options, a worker that translates, and the results. */
import { pictureSize, type Settings } from "../bbdm";
import type { Reply, Request } from "../protocol";
import { Drawing, type Tool } from "./drawing";
import { Options } from "./options";
import { Photo } from "./photo";
import { Results } from "./results";
import "./style.css";

const DRAWINGS = import.meta.glob<string>("../../../../bbdm/demo/drawings/*.png", { query: "?url", import: "default", eager: true });
const NAMES: Record<string, string> = { "1F36D": "lollipop", "1F383": "pumpkin", "1F427": "penguin", "1F980": "crab" };
const MODEL = "model/"; // beside the page

function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

const worker = new Worker(new URL("../worker/worker.ts", import.meta.url), { type: "module" });
const undo = element<HTMLButtonElement>("undo");
const photo = new Photo(element("own"), element("own-size"), element("own-text"));
const drawing = new Drawing(element("sheet"), element("cross"), (undoable) => {
  undo.disabled = !undoable;
  photo.forget(); // the sheet shows something else
});
const results = new Results(element("results"));
const options = new Options({
  solver: element("solver"),
  calls: element("calls"),
  seed: element("seed"),
  pictures: element("pictures"),
  device: element("device"),
});
const translate = element<HTMLButtonElement>("translate");
const bar = element<HTMLProgressElement>("bar");

let settings: Settings | null = null;
let running = 0; // the number of the translation that goes on, or 0
let count = 0; // of translations
let steps = 0; // of the translation that goes on
let rounds = 1; // of steps: one for all its pictures, or one for each

function send(message: Request, given: Transferable[] = []): void {
  worker.postMessage(message, given);
}

/** Tells everybody what happens; screen readers wait for a pause. */
function say(text: string): void {
  element("status").textContent = text;
}

/** Tells everybody what went wrong, at once. */
function warn(text: string): void {
  element("warning").textContent = text;
  element("warning").hidden = text === "";
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** A reason with one full stop. */
function sentence(reason: string): string {
  return reason.replace(/\.*$/, ".");
}

/** Shows a share of the bar; undefined for work of unknown length, null for none. */
function show(share: number | undefined | null): void {
  bar.hidden = share === null;
  if (typeof share === "number") bar.value = share;
  else bar.removeAttribute("value");
}

/** Which call goes on. */
function place(first: number, call: number): string {
  return `${rounds > 1 ? `Picture ${first + 1} of ${rounds}, call` : "Call"} ${call} of ${steps}`;
}

function start(): void {
  warn("");
  const seeds = options.seeds;
  if (!settings) return;
  if (!seeds) return warn("Seed must be a whole number from 0 to 9223372036854775807.");
  if (drawing.empty) return warn("The sheet is empty: draw something, or choose a drawing.");
  const table = options.table;
  const byWindows = photo.chosen;
  const source = byWindows ? photo.pixels() : drawing.pixels();
  [running, steps, rounds] = [++count, table.timesteps.length, byWindows ? seeds.length : 1];
  options.keep();
  results.begin(seeds, source.height, source.width);
  element("results").scrollIntoView({ block: "nearest" }); // on a phone they are below the drawing
  translate.textContent = "Stop";
  say("Waiting for the network.");
  show(undefined);
  send({ kind: "translate", id: running, source, byWindows, seeds, table, device: options.device }, [source.data.buffer]);
}

function finish(finished: boolean): void {
  running = 0;
  results.end(finished);
  translate.textContent = "Translate";
  show(null);
}

function stop(): void {
  send({ kind: "stop" });
  finish(false);
  say("Stopped.");
}

const replies: { [Kind in Reply["kind"]]: (reply: Reply & { kind: Kind }) => void } = {
  opened(reply) {
    settings = reply.settings;
    drawing.resize(...pictureSize(settings));
    if (![1, 3].includes(settings.image_channels)) {
      return replies.failed({ kind: "failed", reason: `pictures of ${settings.image_channels} channels cannot be drawn` });
    }
    options.offer(settings, reply.tables);
    element<HTMLInputElement>("own-size").checked = settings.crop !== undefined; // as Python's window="auto"
    translate.disabled = false;
    element("drawing").inert = false; // nothing is drawn before its size is known
  },
  loading({ loaded, total, cached }) {
    const size = total ? `${megabytes(loaded)} of ${megabytes(total)}` : megabytes(loaded);
    show(total ? Math.min(1, loaded / total) : undefined); // a compressed file is larger than it says
    const [height, width] = pictureSize(settings!);
    element("facts").textContent = `The network has ${megabytes(total || loaded)}, for ${width} x ${height} pixels.`;
    say(cached ? `Loading the network from this browser's cache: ${size}.` : `Downloading the network: ${size}.`);
  },
  starting({ device }) {
    show(undefined);
    say(device === "wasm" ? "Starting the network." : "Starting WebGPU, and comparing one call with WASM.");
  },
  ready({ device, threads }) {
    if (!running) show(null);
    const on = device === "webgpu" ? "WebGPU" : `WASM, ${threads} ${threads === 1 ? "thread" : "threads"}`;
    say(`Ready on ${on}. Draw something, or choose a drawing.`);
  },
  refused({ reason }) {
    options.device = "wasm";
    warn(`WebGPU is not used: ${sentence(reason)} WASM goes on.`);
  },
  windows({ id, first, calls, done, total }) {
    if (id !== running) return;
    show((first * steps + calls + done / total) / (rounds * steps));
    say(`${place(first, calls + 1)}, window ${done} of ${total}.`);
  },
  step({ id, first, calls, pictures }) {
    if (id !== running) return;
    results.show(pictures, first);
    show((first * steps + calls) / (rounds * steps));
    say(`${place(first, calls)}.`);
  },
  done({ id, seconds }) {
    if (id !== running) return;
    finish(true);
    say(`Done: ${steps} ${steps === 1 ? "call" : "calls"} in ${seconds.toFixed(1)} s.`);
  },
  failed({ id, reason }) {
    if (id !== undefined && id !== running) return;
    finish(false);
    say("");
    warn(sentence(reason));
  },
};

worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
  (replies[data.kind] as (reply: Reply) => void)(data);
});
worker.addEventListener("error", (event) => {
  replies.failed({ kind: "failed", reason: event.message || "the worker cannot be loaded: reload the page" });
});

/** Puts a picture file on the sheet. */
async function openPicture(file: Blob, name: string): Promise<boolean> {
  warn("");
  const image = await createImageBitmap(file).catch(() => null);
  if (!image) {
    warn(`${name} is not a picture that this browser can read.`);
    return false;
  }
  drawing.show(image);
  photo.offer(image, settings!);
  say(`${name} is on the sheet.`);
  return true;
}

for (const [path, url] of Object.entries(DRAWINGS)) {
  const name = NAMES[path.split("/").at(-1)!.replace(".png", "")] ?? "drawing";
  const [choice, image] = [document.createElement("button"), document.createElement("img")];
  [choice.type, choice.title] = ["button", `Translate the ${name}`];
  [image.src, image.alt, image.width, image.height] = [url, `Translate the ${name}`, 64, 64];
  choice.append(image);
  choice.addEventListener("click", async () => {
    if (await openPicture(await (await fetch(url)).blob(), `The ${name}`)) start();
  });
  element("drawings").append(choice);
}

for (const tool of ["pen", "eraser"] as const satisfies Tool[]) {
  element(tool).addEventListener("change", () => (drawing.tool = tool));
}
element("width").addEventListener("input", (event) => {
  drawing.lineWidth = Number((event.target as HTMLInputElement).value);
});
undo.addEventListener("click", () => drawing.undo());
element("clear").addEventListener("click", () => drawing.clear());
element("new-seed").addEventListener("click", () => options.drawSeed());
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) stop();
  else start();
});

const file = element<HTMLInputElement>("file");
file.addEventListener("change", () => {
  const chosen = file.files?.[0];
  if (chosen) void openPicture(chosen, chosen.name);
  file.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const dropped = event.dataTransfer?.files[0];
  if (dropped && settings) void openPicture(dropped, dropped.name);
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !(event.target instanceof HTMLInputElement)) {
    event.preventDefault();
    drawing.undo();
  }
});

const model = new URLSearchParams(location.search).get("model") ?? MODEL;
try {
  send({ kind: "open", model: new URL(model.endsWith("/") ? model : `${model}/`, document.baseURI).href });
} catch {
  warn(`model must be the address of an export's folder, got ${model}.`);
}
void navigator.serviceWorker?.register("sw.js").catch(() => undefined); // without it, all works but offline and threads
