/** Solver, calls, seed, pictures and device: from the address, in the form, and back into the address. */
import { SEEDS } from "../philox";
import type { Settings, Table } from "../bbdm";
import type { Device } from "../protocol";

const NAMES = ["solver", "calls", "seed", "pictures", "device"] as const;
type Name = (typeof NAMES)[number];
const DRAWN = 2 ** 32; // seeds that "New seed" draws are below

export class Options {
  private tables: Table[] = []; // the export's own first

  constructor(private readonly fields: Record<Name, HTMLInputElement | HTMLSelectElement>) {
    fields.solver.addEventListener("change", () => this.fillCalls());
    const address = new URLSearchParams(location.search);
    for (const name of ["seed", "pictures", "device"] as const) this.choose(name, address.get(name));
  }

  /** Offers the tables of an export; its own is the default. */
  offer(settings: Settings, tables: Table[]): void {
    const own = key(settings);
    this.tables = [settings, ...tables.filter((table) => key(table) !== own)];
    const solvers = [...new Set(this.tables.map(({ solver }) => solver))];
    fill(this.fields.solver, solvers, settings.solver, settings.solver);
    const address = new URLSearchParams(location.search);
    this.choose("solver", address.get("solver"));
    this.fillCalls();
    this.choose("calls", address.get("calls"));
  }

  get table(): Table {
    const wanted = `${this.fields.solver.value}:${this.fields.calls.value}`;
    return this.tables.find((table) => key(table) === wanted)!;
  }

  /** One seed for each picture: as in Python, picture i has the seed SEED + i. Null where the field has none. */
  get seeds(): bigint[] | null {
    const count = BigInt(this.fields.pictures.value);
    if (!/^\d{1,19}$/.test(this.fields.seed.value.trim())) return null;
    const first = BigInt(this.fields.seed.value.trim());
    return first + count > SEEDS ? null : Array.from({ length: Number(count) }, (_, i) => first + BigInt(i));
  }

  get device(): Device {
    return this.fields.device.value as Device;
  }

  set device(device: Device) {
    this.fields.device.value = device;
  }

  drawSeed(): void {
    this.fields.seed.value = String(Math.floor(Math.random() * DRAWN));
  }

  /** Writes the choices into the address, so that it leads back to them. */
  keep(): void {
    const address = new URL(location.href);
    for (const name of NAMES) address.searchParams.set(name, this.fields[name].value);
    history.replaceState(null, "", address);
  }

  private fillCalls(): void {
    const { solver, calls } = this.fields;
    const own = this.tables[0]!;
    const counts = this.tables.filter((table) => table.solver === solver.value).map((table) => table.timesteps.length);
    const sorted = [...new Set(counts)].sort((a, b) => a - b).map(String);
    const exported = own.solver === solver.value ? String(own.timesteps.length) : undefined;
    fill(calls, sorted, exported, sorted.includes(calls.value) ? calls.value : (exported ?? sorted[0]!));
  }

  /** Sets a field to a value that it takes. */
  private choose(name: Name, value: string | null): void {
    const field = this.fields[name];
    const taken = field instanceof HTMLInputElement || [...field.options].some((option) => option.value === value);
    if (value !== null && taken) field.value = value;
  }
}

function key(table: Table): string {
  return `${table.solver}:${table.timesteps.length}`;
}

/** Options of a select; the default says that it is. */
function fill(field: HTMLInputElement | HTMLSelectElement, values: string[], own: string | undefined, chosen: string): void {
  field.replaceChildren(...values.map((value) => new Option(value === own ? `${value} (default)` : value, value)));
  field.value = chosen;
}
