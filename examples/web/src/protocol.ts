/** What the page and its worker tell each other. */
import type { Pixels, Settings, Table, Told } from "./bbdm";

export type Device = "wasm" | "webgpu";

/** The mean of pictures, and where they differ: {@link Moments}. */
export interface Compared {
  mean: Pixels;
  map: Pixels;
}

export type Request =
  | { kind: "open"; model: string; timed?: boolean } // whether a call of the network is timed first
  | { kind: "keep"; model: string } // an export that may be asked for later, without a connection
  | {
      kind: "translate";
      id: number;
      source: Pixels;
      byWindows: boolean; // whether the network is called on windows of the source, for one seed after the other
      seeds: bigint[];
      compared?: boolean; // whether the mean of the pictures is wanted, and where they differ
      table: Table;
      told: Told;
      device: Device;
    }
  | { kind: "stop" };

export type Reply =
  | { kind: "opened"; settings: Settings; tables: Table[] }
  | { kind: "loading"; loaded: number; total: number; cached: boolean } // bytes; a total of 0 is unknown
  | { kind: "starting"; device: Device }
  | { kind: "ready"; device: Device; threads: number }
  | { kind: "timed"; seconds: number } // of a call on one window
  | { kind: "refused"; reason: string } // WebGPU, so that WASM goes on
  | { kind: "windows"; id: number; first: number; calls: number; done: number; total: number } // done of this call's
  | {
      kind: "step";
      id: number;
      first: number; // the place of the seed of pictures[0]
      calls: number;
      pictures: Pixels[];
      compared?: Compared; // of all pictures that are finished, where there are two
    }
  | { kind: "done"; id: number; seconds: number }
  | { kind: "failed"; id?: number; reason: string }; // without an id, what all translations need
