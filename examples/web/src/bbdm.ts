/**
 * Translates pictures with what `bbdm export` wrote: bridge.json, unet.onnx, and of a latent bridge
 * encoder.onnx and decoder.onnx. Needs ONNX Runtime, which the caller passes in, and no DOM: it runs in a
 * page, in a worker and in Node. A seed gives the picture that bbdm.BridgeSampler gives for it.
 */
import type { InferenceSession, Tensor } from "onnxruntime-web";
import { normal } from "./philox";
import { crop, pad, up, type Picture } from "./pictures";
import { blend, spread, type Shape, type Side } from "./windows";

export { fromPixels, toPixels, type Picture, type Pixels } from "./pictures";

const FORMAT = "bbdm onnx";
const VERSION = 6; // of bridge.json: the newest that is read
const OTHERS = ["source_values", "target_values", "source_channels", "endpoint", "slices", "axes"]; // since version 4
const FLOAT_TIMES = 2; // the version since which the network takes times as float32
const BAND = 2 ** 16; // elements whose noise is made at once, a multiple of 4
const WINDOWS_AT_ONCE = 4; // in a network call
const OVERLAP = 0.25; // of neighbouring windows at least, as a share of a window

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
  crop?: number | [number, number]; // and of the crops of pictures that it was trained on, if any
  stride: number; // height and width are padded to multiples of it
  latent_stride: number; // pixels along one of the bridge's space
  static?: [number, number, number] | null; // the only batch, height and width that the graphs take
  classes?: Record<string, number | string[]>; // what the network is told, by name: how many there are, or their names
  images?: Record<string, number>; // which cannot be given here, as tokens cannot
  tokens?: Record<string, number>;
  drop?: Record<string, number>; // conditions that may be left out
  dtype: string;
  files: Record<string, string>; // SHA-256 of each file
  sizes?: Record<string, number>; // and its bytes
  packed?: boolean; // whether files lie there compressed, as NAME.gzip
}

/** The state of all images after a step, and the estimate of their targets: (B, C, H, W). The next step overwrites them. */
export interface State {
  index: number;
  x: Float32Array;
  x0hat: Float32Array;
}

/** What the network is told besides the source. */
export interface Told {
  classes: Record<string, number>; // numbers of classes by name; what is left out is none
  guidance?: number; // how far predictions go from those without classes, 0, past those with them, 1: that is the default
}

export const UNTOLD = "none";

/** The names of classes, which are numbers where they have none. */
export function classNames(classes: number | string[]): string[] {
  return typeof classes === "number" ? Array.from({ length: classes }, (_, i) => String(i)) : classes;
}

/** Windows of pictures larger than them, on which the network is called. */
export interface Windows {
  size: [height: number, width: number]; // multiples of the network's stride
  report?: (done: number, total: number) => Promise<void>; // after each call: windows of an image in a step, and all
}

/** A network: what it is shown, (B, C, H, W), and the time that it sees, to its output of the same shape. */
export type Network = (shown: Float32Array, time: number) => Promise<Float32Array>;

/** A network that sees sources, (B, C, H, W) as what it is shown; of images of a shape (C, H, W). */
type Predict = (shown: Float32Array, time: number, y: Float32Array, shape: number[]) => Promise<Float32Array>;

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
  const other = OTHERS.find((name) => (settings as object as Record<string, unknown>)[name] !== undefined);
  if (other) throw new Error(`bridge.json has ${other}: this library is for pictures of 8 bits to pictures of as many channels`);
  if (typeof settings.stride === "object") throw new Error("bridge.json has a stride for each axis: this library takes one");
  const shown = Object.keys({ ...settings.images, ...settings.tokens });
  if (shown.length) throw new Error(`this network is told ${shown.join(", ")}: images and tokens, which a page cannot give`);
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

/** Height and width of windows: of what it was trained on, rounded to the stride, or the only size of the graphs. */
export function windowSize(settings: Settings): [height: number, width: number] {
  const { crop: side, stride } = settings;
  const known = settings.static || !side ? pictureSize(settings) : typeof side === "number" ? [side, side] : side;
  return known.map((side) => Math.max(1, Math.floor(side / stride)) * stride) as [number, number];
}

/** The windows of a picture that the network is called on in each step; 0 where it has a window's size, or cannot. */
export function windowCount(settings: Settings, height: number, width: number): number {
  const size = windowSize(settings);
  const fixed = settings.static && (height < size[0] || width < size[1] || "encoder.onnx" in settings.files);
  if (fixed || (height <= size[0] && width <= size[1])) return 0;
  const [down, across] = sidesOf(settings, size, up(height, settings.stride), up(width, settings.stride));
  return down.starts.length * across.starts.length;
}

/** The windows of the sides of a padded picture, in values of the bridge's space. */
function sidesOf(settings: Settings, size: [number, number], height: number, width: number): [Side, Side] {
  const [unit, cell] = [settings.stride / settings.latent_stride, settings.latent_stride];
  return [spread(height / cell, size[0] / cell, OVERLAP, unit), spread(width / cell, size[1] / cell, OVERLAP, unit)];
}

/**
 * The sampling loop. Nothing here knows the bridge or the solver.
 *
 * @param y the sources in the space of the bridge, (B, C, H, W); B is the number of seeds
 */
export async function* sample(table: Table, y: Float32Array, seeds: bigint[], network: Network): AsyncGenerator<State> {
  const each = y.length / seeds.length;
  const none = new Float32Array(BAND);
  /** Where bands of all images begin, and their noise of a row, which is not made where its weight is 0. */
  function* noise(row: number, weight: number): Generator<[begin: number, noise: Float32Array]> {
    for (const [i, seed] of seeds.entries()) {
      for (let first = 0; first < each; first += BAND) {
        const count = Math.min(BAND, each - first);
        yield [i * each + first, weight ? normal(seed, row, count, first) : none.subarray(0, count)];
      }
    }
  }
  const [x, x0hat, shown] = [new Float32Array(y.length), y.slice(), new Float32Array(y.length)];
  const [ofSource, ofNoise] = weights(table.start ?? [1, 0]) as [number, number];
  for (const [begin, z] of noise(table.timesteps.length - 1, ofNoise)) {
    for (let k = 0; k < z.length; k++) x[begin + k] = ofSource * y[begin + k]! + ofNoise * z[k]!;
  }
  for (const index of table.timesteps.keys()) {
    const [shownX, shownY] = weights(table.inputs?.[index] ?? [1, 0]) as [number, number];
    for (let i = 0; i < y.length; i++) shown[i] = shownX * x[i]! + shownY * y[i]!;
    const output = await network(shown, (table.network_times ?? table.timesteps)[index]!);
    const [pX, pY, pOutput] = weights(table.prediction[index]!) as [number, number, number];
    const [cX, cY, cEstimate, cBefore, cNoise] = weights(table.coefficients[index]!) as Row;
    for (const [begin, z] of noise(index, cNoise)) {
      for (let k = 0, i = begin; k < z.length; k++, i++) {
        const before = x0hat[i]!;
        x0hat[i] = pX * x[i]! + pY * y[i]! + pOutput * output[i]!;
        x[i] = cX * x[i]! + cY * y[i]! + cEstimate * x0hat[i]! + cBefore * before + cNoise * z[k]!;
      }
    }
    yield { index, x, x0hat };
  }
}

type Row = [number, number, number, number, number];

/** Values, and the same again. */
function twice(values: Float32Array): Float32Array {
  const made = new Float32Array(2 * values.length);
  made.set(values);
  made.set(values, values.length);
  return made;
}

/** Weights of a table in float32, as in Python. */
function weights(row: number[]): number[] {
  return row.map(Math.fround);
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

  /** The pictures of one source, one for each seed; see {@link stream}. */
  async translate(source: Picture, seeds: bigint[], table?: Table, windows?: Windows, told?: Told): Promise<Picture[]> {
    let state: State | undefined;
    for await (state of this.stream(source, seeds, table, windows, told));
    return this.pictures(state!.x, source);
  }

  /**
   * The same translation, one step at a time; {@link pictures} shows a step. Leave the loop to stop.
   *
   * @param windows on which the network is called, where the source is larger; without them it sees the whole source
   * @param told its classes, the first of each if absent
   */
  async *stream(
    source: Picture,
    seeds: bigint[],
    table: Table = this.settings,
    windows?: Windows,
    told: Told = this.first,
  ): AsyncGenerator<State> {
    const { image_channels, stride, latent_stride, channels } = this.settings;
    if (!seeds.length) throw new Error("seeds must hold at least one");
    if (source.channels !== image_channels) {
      throw new Error(`source must have ${image_channels} channels, got ${source.channels}`);
    }
    const padded = pad(source, stride);
    const latent = await this.convert("encoder.onnx", "image", padded.data, [1, image_channels, padded.height, padded.width]);
    const y = seeds.length === 1 ? latent : new Float32Array(seeds.length * latent.length);
    if (y !== latent) seeds.forEach((_, i) => y.set(latent, i * latent.length));
    const shape: Shape = [channels, padded.height / latent_stride, padded.width / latent_stride];
    const larger = windows && (source.height > windows.size[0] || source.width > windows.size[1]);
    const guided = this.guided(told);
    const network = larger ? this.windowed(y, shape, windows, guided) : undefined;
    yield* sample(readTable(table), y, seeds, network ?? ((shown, time) => guided(shown, time, y, shape)));
  }

  /** The network on windows of images, (B, C, H, W), which sees their part of y. */
  private windowed(y: Float32Array, shape: Shape, { size, report = async () => undefined }: Windows, guided: Predict): Network {
    const { stride, latent_stride } = this.settings;
    if (size.some((side) => side < stride || side % stride)) {
      throw new Error(`windows must be multiples of the network's stride ${stride}, got ${size.join(" x ")}`);
    }
    const sides = sidesOf(this.settings, size, shape[1] * latent_stride, shape[2] * latent_stride);
    const each = shape[0] * shape[1] * shape[2];
    const atOnce = this.settings.static?.[0] ?? WINDOWS_AT_ONCE;
    const output = new Float32Array(y.length);
    return async (shown, time) => {
      output.fill(0);
      for (let at = 0; at < y.length; at += each) {
        const images = [shown, y].map((values) => values.subarray(at, at + each));
        const call = ([x, seen]: Float32Array[], part: Shape) => guided(x!, time, seen!, part);
        await blend(images, shape, sides, atOnce, call, output.subarray(at, at + each), report);
      }
      return output;
    };
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
    const classes = this.numbers(this.first.classes);
    const wanted = await this.predict(x, time, y, shape, [classes]);
    const got = await other.predict(x, time, y, shape, [classes]);
    let [largest, off] = [0, 0];
    wanted.forEach((value, i) => {
      largest = Math.max(largest, Math.abs(value));
      off = Math.max(off, Math.abs(value - got[i]!)); // NaN stays NaN
    });
    return Number.isFinite(off) ? off / largest : Infinity;
  }

  /** The seconds of a network call on one window; null where the network fails, as translations will say. */
  async time(): Promise<number | null> {
    const { channels, stride, latent_stride, timesteps, network_times = timesteps } = this.settings;
    const shape = [channels, ...windowSize(this.settings).map((side) => up(side, stride) / latent_stride)];
    const zeros = new Float32Array(shape.reduce((a, b) => a * b));
    const begun = performance.now();
    try {
      await this.predict(zeros, network_times[0]!, zeros, shape, [this.numbers(this.first.classes)]);
    } catch {
      return null;
    }
    return (performance.now() - begun) / 1000;
  }

  /** The first class of each kind. */
  private get first(): Told {
    return { classes: Object.fromEntries(Object.keys(this.settings.classes ?? {}).map((name) => [name, 0])) };
  }

  /** The number of each class as the network takes it: one that is left out is the number of classes. */
  private numbers(given: Record<string, number>): Record<string, number> {
    const { classes = {}, drop = {} } = this.settings;
    const entries = Object.entries(classes).map(([name, names]) => {
      const number = given[name] ?? classNames(names).length;
      const most = classNames(names).length - (name in drop ? 0 : 1);
      if (!(number >= 0 && number <= most)) throw new Error(`${name} must be a class from 0 to ${most}, got ${given[name]}`);
      return [name, number] as const;
    });
    return Object.fromEntries(entries);
  }

  /** The network with what it is told; where it is guided, each call evaluates twice as many images. */
  private guided({ classes, guidance = 1 }: Told): Predict {
    const told = this.numbers(classes);
    if (guidance === 1) return (shown, time, y, shape) => this.predict(shown, time, y, shape, [told]);
    const dropped = Object.keys(this.settings.drop ?? {});
    if (!dropped.length) throw new Error("guidance needs a network that was trained without its classes at times");
    const less = this.numbers(Object.fromEntries(Object.entries(classes).filter(([name]) => !dropped.includes(name))));
    return async (shown, time, y, shape) => {
      const output = await this.predict(twice(shown), time, twice(y), shape, [told, less]);
      const [full, other] = [output.subarray(0, shown.length), output.subarray(shown.length)];
      return full.map((value, i) => value + (guidance - 1) * (value - other[i]!));
    };
  }

  /**
   * The network's output for a batch; an export of one batch size is called in parts of it.
   *
   * @param told numbers of classes of equal shares of the batch
   */
  private async predict(
    shown: Float32Array,
    time: number,
    y: Float32Array,
    shape: number[],
    told: Record<string, number>[],
  ): Promise<Float32Array> {
    const each = shape.reduce((a, b) => a * b);
    const count = shown.length / each;
    const batch = this.settings.static?.[0] ?? count;
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
      const classes = Object.keys(told[0]!).map((name) => {
        const of = (i: number): Record<string, number> => told[Math.floor((Math.min(i, count - 1) * told.length) / count)]!;
        const numbers = BigInt64Array.from({ length: batch }, (_, i) => BigInt(of(at / each + i)[name]!));
        return [name, new this.runtime.Tensor("int64", numbers, [batch])] as const;
      });
      const inputs = { x: part(shown), t, ...(this.settings.conditioned && { condition: part(y) }), ...Object.fromEntries(classes) };
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
