/** What the page and its worker tell each other. */
import type { Picture, Settings, Table } from "./bbdm";

export type Device = "wasm" | "webgpu";

export type Request =
  | { kind: "open"; model: string }
  | { kind: "translate"; id: number; source: Picture; seeds: bigint[]; table: Table; device: Device }
  | { kind: "stop" };

export type Reply =
  | { kind: "opened"; settings: Settings; tables: Table[] }
  | { kind: "loading"; loaded: number; total: number; cached: boolean } // bytes; a total of 0 is unknown
  | { kind: "starting"; device: Device }
  | { kind: "ready"; device: Device; threads: number }
  | { kind: "refused"; reason: string } // WebGPU, so that WASM goes on
  | { kind: "step"; id: number; calls: number; pictures: Picture[] }
  | { kind: "done"; id: number; seconds: number }
  | { kind: "failed"; id?: number; reason: string }; // without an id, what all translations need
