/** What a network is told of the pictures that it makes: a menu for each kind of class, and how much they count. */
import { classNames, UNTOLD, type Settings, type Told } from "../bbdm";

const MOST = 6; // guidance

export class ToldFields {
  private readonly menus = new Map<string, HTMLSelectElement>();
  private slider: HTMLInputElement | null = null;
  private readonly shown = document.createElement("output"); // the slider's value
  private wanted = new URLSearchParams(); // what was asked for before the fields were there

  /** @param changed called when a visitor chose something */
  constructor(private readonly root: HTMLElement, changed: () => void) {
    root.addEventListener("change", changed);
  }

  /** Fields for the conditions of an export; none where it has none. */
  offer({ classes = {}, drop = {} }: Settings): void {
    this.menus.clear();
    this.slider = null;
    this.root.replaceChildren();
    for (const name of Object.keys(classes)) {
      const menu = document.createElement("select");
      menu.append(...classNames(classes[name]!).map((each, i) => new Option(each, String(i))));
      if (name in drop) menu.append(new Option("none", UNTOLD));
      this.menus.set(name, this.labelled(name.replaceAll("_", " "), name, menu));
    }
    if (Object.keys(classes).some((name) => name in drop)) {
      const slider = document.createElement("input");
      const title = "Other numbers than 1 take twice the time";
      Object.assign(slider, { type: "range", min: "0", max: String(MOST), step: "0.5", value: "1", title });
      this.slider = this.labelled("How much it counts", "guidance", slider);
      slider.before(this.shown);
      slider.addEventListener("input", () => this.show());
    }
    this.root.hidden = !this.menus.size;
    this.read(this.wanted);
  }

  get value(): Told {
    const known = [...this.menus].filter(([, menu]) => menu.value !== UNTOLD);
    const classes = Object.fromEntries(known.map(([name, menu]) => [name, Number(menu.value)]));
    return { classes, guidance: Number(this.slider?.value ?? 1) };
  }

  /** Takes the choices of an address, of which each may be missing. */
  read(address: URLSearchParams): void {
    this.wanted = address;
    for (const [name, menu] of this.menus) {
      const asked = [...menu.options].find(({ text }) => text === address.get(`class.${name}`));
      if (asked) menu.value = asked.value;
    }
    const guidance = address.get("guidance");
    if (this.slider && guidance !== null && Number.isFinite(Number(guidance))) this.slider.value = guidance;
    this.show();
  }

  /** Adds the choices to an address. */
  write(address: URLSearchParams): void {
    for (const [name, menu] of this.menus) address.set(`class.${name}`, menu.selectedOptions[0]!.text);
    if (this.slider && this.slider.value !== "1") address.set("guidance", this.slider.value);
  }

  private show(): void {
    this.shown.textContent = this.slider?.value ?? "";
  }

  private labelled<Field extends HTMLElement>(text: string, name: string, field: Field): Field {
    const label = document.createElement("label");
    field.id = `${this.root.id}-${name}`;
    label.append(text, field);
    this.root.append(label);
    return field;
  }
}
