/** What a visitor chooses: what the network is told and, under "Advanced", method, steps, seed, and what computes. */
import { SEEDS } from "../philox";
import type { Settings, Table, Told } from "../bbdm";
import type { Device } from "../protocol";
import { ToldFields } from "./told";

const NAMES = ["solver", "calls", "seed", "pictures", "line", "device"] as const;
export type Name = (typeof NAMES)[number];
type Field = HTMLInputElement | HTMLSelectElement;

const DRAWN = 2 ** 32; // seeds that are drawn are below
const METHODS: Record<string, string> = {
  "sde-dpm2m": "Fresh noise in each step",
  dpm2m: "Noise at the start only",
  midpoint: "Two looks a step",
  ddim: "Plain steps",
  posterior: "Many small steps",
  consistency: "The few steps it was taught",
  mean: "The average of all answers",
};

export class Options {
  private readonly fields = new Map<Name, Field>();
  private readonly toldFields: ToldFields;
  private tables: Table[] = []; // the export's own first
  private wanted = new URLSearchParams(); // what was asked for before there were tables

  /**
   * @param root a details element, filled from a template
   * @param place of the fields for what the network is told
   * @param names of the fields that are offered
   * @param changed called when a visitor chose something
   * @param preferred the default solver, where there is a table of it
   */
  constructor(
    root: HTMLElement,
    place: HTMLElement,
    private readonly names: readonly Name[],
    changed: () => void,
    private readonly preferred?: string,
  ) {
    this.toldFields = new ToldFields(place, changed);
    root.append((document.getElementById("advanced") as HTMLTemplateElement).content.cloneNode(true));
    for (const name of NAMES) {
      const field = root.querySelector<Field>(`[name=${name}]`)!;
      field.id = `${root.id}-${name}`;
      this.fields.set(name, field);
      field.closest("label")!.hidden = !names.includes(name);
    }
    root.addEventListener("change", (event) => {
      if (event.target === this.field("solver")) this.fillCalls();
      changed();
    });
  }

  /** Offers the tables of an export; its own is the default, or one of the solver that is preferred. */
  offer(settings: Settings, tables: Table[]): void {
    const own = key(settings);
    this.tables = [settings, ...tables.filter((table) => key(table) !== own)];
    const solvers = [...new Set(this.tables.map(({ solver }) => solver))];
    const named = (solver: string): string => (METHODS[solver] ? `${METHODS[solver]} (${solver})` : solver);
    const usual = solvers.find((solver) => solver === this.preferred) ?? settings.solver;
    fill(this.field("solver"), solvers, named, usual, usual);
    this.choose("solver", this.wanted.get("solver"));
    this.fillCalls();
    this.choose("calls", this.wanted.get("calls"));
    this.toldFields.offer(settings);
  }

  get told(): Told {
    return this.toldFields.value;
  }

  get table(): Table {
    const wanted = `${this.value("solver")}:${this.value("calls")}`;
    return this.tables.find((table) => key(table) === wanted)!;
  }

  /** One seed for each picture: as in Python, picture i has the seed SEED + i. Throws an Error where there is none. */
  seeds(pictures = Number(this.value("pictures"))): bigint[] {
    const [text, count] = [this.seed, BigInt(pictures)];
    if (!/^\d{1,19}$/.test(text) || BigInt(text) + count > SEEDS) {
      const taken = count > 1n ? `; ${count} pictures take it and the next ${count - 1n}` : "";
      throw new Error(`The seed must be a whole number from 0 to ${SEEDS - count}${taken}.`);
    }
    return Array.from({ length: pictures }, (_, i) => BigInt(text) + BigInt(i));
  }

  get device(): Device {
    return this.value("device") as Device;
  }

  set device(device: Device) {
    this.field("device").value = device;
  }

  /** The width of lines as the network sees them, in pixels of 64. */
  get line(): number {
    return Number(this.value("line"));
  }

  drawSeed(): void {
    this.field("seed").value = String(Math.floor(Math.random() * DRAWN));
  }

  /** Takes the choices of an address, of which each may be missing. */
  read(address: URLSearchParams): void {
    this.wanted = address;
    this.toldFields.read(address);
    for (const name of this.names) this.choose(name, address.get(name));
    if (this.tables.length) this.offer(this.tables[0] as Settings, this.tables.slice(1));
  }

  /** Adds what makes the same pictures to an address. */
  write(address: URLSearchParams): void {
    address.set("seed", this.seed);
    for (const name of ["pictures", "line"] as const) address.set(name, this.value(name));
    this.toldFields.write(address);
    if (this.tables.length && key(this.table) !== key(this.tables[0]!)) {
      for (const name of ["solver", "calls"] as const) address.set(name, this.value(name));
    }
  }

  private field(name: Name): Field {
    return this.fields.get(name)!;
  }

  /** The text of the field; where it is empty, a seed is drawn. */
  private get seed(): string {
    if (!this.value("seed").trim()) this.drawSeed();
    return this.value("seed").trim();
  }

  private value(name: Name): string {
    return this.field(name).value;
  }

  private fillCalls(): void {
    const own = this.tables[0]!;
    const [solver, before] = [this.value("solver"), this.value("calls")];
    const counts = this.tables.filter((table) => table.solver === solver).map((table) => table.timesteps.length);
    const sorted = [...new Set(counts)].sort((a, b) => a - b).map(String);
    const exported = own.solver === solver ? String(own.timesteps.length) : undefined;
    const chosen = sorted.includes(before) ? before : (exported ?? sorted[0]!);
    fill(this.field("calls"), sorted, String, exported, chosen);
  }

  /** Sets a field to a value that it takes. */
  private choose(name: Name, value: string | null): void {
    const field = this.field(name);
    const taken = field instanceof HTMLInputElement || [...field.options].some((option) => option.value === value);
    if (value !== null && taken) field.value = value;
  }
}

function key(table: Table): string {
  return `${table.solver}:${table.timesteps.length}`;
}

/** Options of a select; the default says that it is. */
function fill(
  field: Field,
  values: string[],
  named: (value: string) => string,
  own: string | undefined,
  chosen: string,
): void {
  const text = (value: string): string => named(value) + (value === own ? ", the default" : "");
  field.replaceChildren(...values.map((value) => new Option(text(value), value)));
  field.value = chosen;
}
