/**
 * Translates pictures with what `bbdm export` wrote: bridge.json, unet.onnx, and of a latent bridge
 * encoder.onnx and decoder.onnx. Needs ONNX Runtime, which the caller passes in, and no DOM: it runs in a
 * page, in a worker and in Node. A seed gives the picture that bbdm.BridgeSampler gives for it.
 */
import type { InferenceSession, Tensor } from "onnxruntime-web";
import { normal } from "./philox";

const FORMAT = "bbdm onnx";
const VERSION = 3; // of bridge.json: the newest that is read
const FLOAT_TIMES = 2; // the version since which the network takes times as float32

/** What is used of ONNX Runtime: onnxruntime-web, onnxruntime-node, or onnxruntime-web/webgpu. */
export type Runtime = Pick<typeof import("onnxruntime-web"), "InferenceSession" | "Tensor">;

/** The weights of every step of a sampling loop, one row for each call of the network: bbdm.solvers.StepTable. */
export interface Table {
  solver: string;
  timesteps: number[];
  prediction: number[][]; // the estimate of the target as weights of x, y and the network's output
  coefficients: number[][]; // the next x as weights of x, y, the estimate, the one before, and noise
  inputs?: number[][]; // what the network is shown, as weights of x and y; x if absent
  network_times?: number[]; // what it sees of the times; the times if absent
  start?: number[]; // the first state as weights of y and noise; y if absent
}

/** The content of bridge.json, as far as it is used here. */
export interface Settings extends Table {
  version: number;
  bridge: Record<string, unknown>;
  channels: number; // of the space of the bridge
  conditioned: boolean; // whether the network sees the source
  image_channels: number;
  image_size?: number | [number, number] | null; // the side, or height and width, of the training pictures
  stride: number; // height and width are padded to multiples of it
  latent_stride: number; // pixels along one of the bridge's space
  static?: [number, number, number] | null; // the only batch, height and width that the graphs take
  dtype: string;
  files: Record<string, string>; // SHA-256 of each file
}

/** A picture: (channels, height, width) values in [-1, 1]. */
export interface Picture {
  data: Float32Array;
  channels: number;
  height: number;
  width: number;
}

/** The state of all images after a step, and the estimate of their targets: (B, C, H, W). */
export interface State {
  index: number;
  x: Float32Array;
  x0hat: Float32Array;
}

/** A network: what it is shown, (B, C, H, W), and the time that it sees, to its output of the same shape. */
export type Network = (shown: Float32Array, time: number) => Promise<Float32Array>;

/** bridge.json, checked. Throws an Error that says what was got and what is wanted. */
export function readSettings(value: unknown): Settings {
  const settings = value as (Settings & { format?: unknown }) | null;
  if (settings?.format !== FORMAT) {
    throw new Error(`bridge.json has the format ${JSON.stringify(settings?.format)}, not ${JSON.stringify(FORMAT)}`);
  }
  if (!(settings.version <= VERSION)) {
    throw new Error(`bridge.json is of version ${settings.version}; this library reads up to ${VERSION}`);
  }
  const needed = ["solver", "channels", "image_channels", "stride", "latent_stride", "files"] as const;
  const missing = needed.filter((name) => settings[name] === undefined);
  if (missing.length) throw new Error(`bridge.json lacks ${missing.join(", ")}`);
  if (!settings.files["unet.onnx"]) throw new Error("bridge.json lists no unet.onnx");
  const external = graphs(settings).find((name) => settings.files[`${name}.data`]);
  if (external) throw new Error(`${external} has its weights in a second file: export it with --no-external-data`);
  return { ...settings, ...readTable(settings) };
}

/** A table with rows of the right number and length, or an Error. */
export function readTable<T extends Table>(table: T): T {
  const steps = table.timesteps?.length;
  if (!steps) throw new Error("a table needs timesteps, at least one");
  for (const [name, columns] of [["prediction", 3], ["coefficients", 5], ["inputs", 2]] as const) {
    const rows = table[name] ?? (name === "inputs" ? table.timesteps.map(() => [1, 0]) : undefined);
    if (rows?.length !== steps || rows.some((row) => row.length !== columns || !row.every(Number.isFinite))) {
      throw new Error(`${name} must be ${steps} rows of ${columns} numbers`);
    }
  }
  return table;
}

/** The graphs that a translation needs, by file name. */
export function graphs(settings: Settings): string[] {
  return ["unet.onnx", "encoder.onnx", "decoder.onnx"].filter((name) => name in settings.files);
}

/** Height and width of the pictures that an export is for. */
export function pictureSize(settings: Settings): [height: number, width: number] {
  if (settings.static) return [settings.static[1], settings.static[2]];
  const size = settings.image_size ?? 8 * settings.stride;
  return typeof size === "number" ? [size, size] : size;
}

/**
 * The sampling loop. Nothing here knows the bridge or the solver.
 *
 * @param y the sources in the space of the bridge, (B, C, H, W); B is the number of seeds
 */
export async function* sample(table: Table, y: Float32Array, seeds: bigint[], network: Network): AsyncGenerator<State> {
  const each = y.length / seeds.length;
  const last = table.timesteps.length - 1;
  const noise = (row: number): Float32Array => {
    const made = new Float32Array(y.length);
    seeds.forEach((seed, i) => made.set(normal(seed, row, each), i * each));
    return made;
  };
  const [ofSource = 1, ofNoise = 0] = table.start ?? [];
  let x = sum([ofSource, y], [ofNoise, () => noise(last)]);
  let before = y;
  for (let index = 0; index <= last; index++) {
    const [shownX = 1, shownY = 0] = table.inputs?.[index] ?? [];
    const output = await network(sum([shownX, x], [shownY, y]), (table.network_times ?? table.timesteps)[index]!);
    const [pX, pY, pOutput] = table.prediction[index] as [number, number, number];
    const [cX, cY, cEstimate, cBefore, cNoise] = table.coefficients[index] as [number, number, number, number, number];
    const x0hat = sum([pX, x], [pY, y], [pOutput, output]);
    x = sum([cX, x], [cY, y], [cEstimate, x0hat], [cBefore, before], [cNoise, () => noise(index)]);
    before = x0hat;
    yield { index, x, x0hat };
  }
}

/** The weighted sum of arrays; those of weight 0 are left out, and not made. */
function sum(...terms: [number, Float32Array | (() => Float32Array)][]): Float32Array {
  const used = terms.filter(([weight]) => weight !== 0);
  const first = terms[0]![1] as Float32Array;
  const total = new Float64Array(first.length);
  for (const [weight, term] of used) {
    const [values, factor] = [typeof term === "function" ? term() : term, Math.fround(weight)];
    for (let i = 0; i < total.length; i++) total[i]! += factor * values[i]!;
  }
  return Float32Array.from(total);
}

/** An export that is loaded. */
export class Bridge {
  private constructor(
    readonly settings: Settings,
    private readonly runtime: Runtime,
    private readonly sessions: Map<string, InferenceSession>,
  ) {}

  /**
   * Loads an export.
   *
   * @param settings of {@link readSettings}
   * @param files the content of each of {@link graphs}
   * @param runtime ONNX Runtime
   * @param providers its execution providers, such as "wasm" and "webgpu"
   */
  static async load(
    settings: Settings,
    files: Map<string, Uint8Array>,
    runtime: Runtime,
    providers: string[] = ["wasm"],
  ): Promise<Bridge> {
    const sessions = new Map<string, InferenceSession>();
    for (const name of graphs(settings)) {
      const graph = files.get(name);
      if (!graph) throw new Error(`files must hold ${name}`);
      sessions.set(name, await runtime.InferenceSession.create(graph, { executionProviders: providers }));
    }
    return new Bridge(settings, runtime, sessions);
  }

  /** Gives the memory back. */
  async release(): Promise<void> {
    for (const session of this.sessions.values()) await session.release();
  }

  /** The pictures of one source, one for each seed. */
  async translate(source: Picture, seeds: bigint[], table: Table = this.settings): Promise<Picture[]> {
    let state: State | undefined;
    for await (state of this.stream(source, seeds, table));
    return this.pictures(state!.x, source);
  }

  /** The same translation, one step at a time; {@link pictures} shows a step. Leave the loop to stop. */
  async *stream(source: Picture, seeds: bigint[], table: Table = this.settings): AsyncGenerator<State> {
    const { image_channels, stride, latent_stride, channels } = this.settings;
    if (!seeds.length) throw new Error("seeds must hold at least one");
    if (source.channels !== image_channels) {
      throw new Error(`source must have ${image_channels} channels, got ${source.channels}`);
    }
    const padded = pad(source, stride);
    const latent = await this.convert("encoder.onnx", "image", padded.data, [1, image_channels, padded.height, padded.width]);
    const y = new Float32Array(seeds.length * latent.length);
    seeds.forEach((_, i) => y.set(latent, i * latent.length));
    const shape = [channels, padded.height / latent_stride, padded.width / latent_stride];
    yield* sample(readTable(table), y, seeds, (shown, time) => this.predict(shown, time, y, shape));
  }

  /** The pictures of states or estimates of a stream, cropped to their source's size and clamped to [-1, 1]. */
  async pictures(states: Float32Array, source: Picture): Promise<Picture[]> {
    const { image_channels, channels, stride, latent_stride } = this.settings;
    const [height, width] = [up(source.height, stride), up(source.width, stride)];
    const each = (channels * height * width) / latent_stride ** 2;
    const shape = [1, channels, height / latent_stride, width / latent_stride];
    const made: Picture[] = [];
    for (let i = 0; i < states.length; i += each) {
      const data = await this.convert("decoder.onnx", "latent", states.subarray(i, i + each), shape);
      made.push(crop({ data, channels: image_channels, height, width }, source));
    }
    return made;
  }

  /** The largest difference of the outputs of one call of the network, on noise, over the largest value. */
  async difference(other: Bridge): Promise<number> {
    const { channels, stride, latent_stride, timesteps, network_times = timesteps } = this.settings;
    const shape = [channels, ...pictureSize(this.settings).map((side) => up(side, stride) / latent_stride)];
    const [x, y] = [0, 1].map((row) => normal(0n, row, shape.reduce((a, b) => a * b))) as [Float32Array, Float32Array];
    const time = network_times[timesteps.length >> 1]!;
    const wanted = await this.predict(x, time, y, shape);
    const got = await other.predict(x, time, y, shape);
    let [largest, off] = [0, 0];
    wanted.forEach((value, i) => {
      largest = Math.max(largest, Math.abs(value));
      off = Math.max(off, Math.abs(value - got[i]!)); // NaN stays NaN
    });
    return Number.isFinite(off) ? off / largest : Infinity;
  }

  /** The network's output for a batch; an export of one batch size is called in parts of it. */
  private async predict(shown: Float32Array, time: number, y: Float32Array, shape: number[]): Promise<Float32Array> {
    const each = shape.reduce((a, b) => a * b);
    const batch = this.settings.static?.[0] ?? shown.length / each;
    const output = new Float32Array(shown.length);
    for (let at = 0; at < shown.length; at += batch * each) {
      const part = (values: Float32Array): Tensor => {
        const filled = new Float32Array(batch * each);
        filled.set(values.subarray(at, at + batch * each));
        return new this.runtime.Tensor("float32", filled, [batch, ...shape]);
      };
      const t =
        this.settings.version < FLOAT_TIMES
          ? new this.runtime.Tensor("int64", BigInt64Array.of(BigInt(time)), [1])
          : new this.runtime.Tensor("float32", Float32Array.of(time), [1]);
      const inputs = { x: part(shown), t, ...(this.settings.conditioned && { condition: part(y) }) };
      const made = await this.run("unet.onnx", inputs);
      output.set(made.subarray(0, Math.min(made.length, output.length - at)), at);
    }
    return output;
  }

  /** Values through a codec's graph, one image at a time; as they are where the bridge has no codec. */
  private async convert(name: string, input: string, values: Float32Array, shape: number[]): Promise<Float32Array> {
    if (!this.sessions.has(name)) return values;
    const batch = this.settings.static?.[0] ?? 1;
    const filled = new Float32Array(batch * values.length);
    for (let i = 0; i < batch; i++) filled.set(values, i * values.length);
    const made = await this.run(name, { [input]: new this.runtime.Tensor("float32", filled, [batch, ...shape.slice(1)]) });
    return made.subarray(0, made.length / batch);
  }

  /** The first output of a graph. */
  private async run(name: string, inputs: Record<string, Tensor>): Promise<Float32Array> {
    const session = this.sessions.get(name)!;
    const outputs = await session.run(inputs);
    return outputs[session.outputNames[0]!]!.data as Float32Array;
  }
}

/** A picture of opaque RGBA pixels, grey (by ITU-R 601, as PIL has it) for one channel. */
export function fromPixels(pixels: Uint8ClampedArray, height: number, width: number, channels: number): Picture {
  if (channels !== 1 && channels !== 3) throw new Error(`a picture can become 1 or 3 channels, not ${channels}`);
  const data = new Float32Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [red, green, blue] = pixels.subarray(4 * i, 4 * i + 3) as unknown as [number, number, number];
    const grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    const values = channels === 1 ? [grey] : [red, green, blue];
    values.forEach((value, c) => (data[c * height * width + i] = Math.fround(value / 127.5) - 1));
  }
  return { data, channels, height, width };
}

/** Opaque RGBA pixels of a picture of 1 or 3 channels. */
export function toPixels({ data, channels, height, width }: Picture): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(4 * height * width).fill(255); // rounds, and half to even as NumPy
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) {
      pixels[4 * i + c] = Math.fround(Math.fround(data[(channels === 1 ? 0 : c) * height * width + i]! + 1) * 127.5);
    }
  }
  return pixels;
}

/** The next multiple of a stride. */
function up(side: number, stride: number): number {
  return Math.ceil(side / stride) * stride;
}

/** The picture with its last row and column repeated up to multiples of a stride. */
function pad(picture: Picture, stride: number): Picture {
  const [height, width] = [up(picture.height, stride), up(picture.width, stride)];
  return window(picture, height, width);
}

/** The first rows and columns, clamped to [-1, 1]. */
function crop(picture: Picture, { height, width }: { height: number; width: number }): Picture {
  const cropped = window(picture, height, width);
  return { ...cropped, data: cropped.data.map((value) => Math.max(-1, Math.min(1, value))) };
}

/** The first rows and columns of a picture; beyond its edges the last ones are repeated. */
function window({ data, channels, height: rows, width: columns }: Picture, height: number, width: number): Picture {
  const made = new Float32Array(channels * height * width);
  for (let i = 0; i < made.length; i++) {
    const [c, row, column] = [Math.floor(i / (height * width)), Math.floor(i / width) % height, i % width];
    made[i] = data[(c * rows + Math.min(row, rows - 1)) * columns + Math.min(column, columns - 1)]!;
  }
  return { data: made, channels, height, width };
}
