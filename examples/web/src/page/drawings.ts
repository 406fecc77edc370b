/** The tab of drawings: a sheet, which is coloured after each stroke, and four pictures beside it. */
import { pictureSize, type Settings } from "../bbdm";
import { kindOf } from "../kind";
import { isWhite } from "../pictures";
import { withText } from "../png";
import { decode, encode, rasterize, type Sketch } from "../strokes";
import { EXAMPLES, OPENING } from "./examples";
import { canvasOf, fit, open, pixels, png, save, tooLarge } from "./files";
import { Results } from "./results";
import { Sheet } from "./sheet";
import { Tab, type Answer } from "./tab";

const PAUSE = 350; // ms after a stroke, in which another may begin
const KEPT = "bbdm-drawing"; // the name in the browser's storage
const COMPARED = 8; // pictures of which is shown where they differ: twice the time of four
const LARGEST = 2 ** 26; // pixels of a file: decoding more takes seconds, and all are reduced to the sheet
const SEEN = 256; // pixels along a side of a picture whose kind is told

export class Drawings extends Tab {
  private readonly sheet: Sheet;
  private readonly results: Results;
  private timer = 0;
  private opening = false; // whether the drawing is the opening's
  private compared = false; // whether it is shown where pictures differ
  private made = 0; // pictures of a translation

  /**
   * @param own whether the export is the page's own, of which the opening pictures are
   * @param photograph called with a file that is one
   */
  constructor(
    root: HTMLElement,
    model: string,
    private readonly own: boolean,
    private readonly photograph: (file: File) => void,
  ) {
    super(root, model, ["solver", "calls", "seed", "pictures", "line", "device"]);
    this.results = new Results(this.element("results"), (...given) => void this.save(...given));
    this.sheet = new Sheet(
      this.element("sheet"),
      this.element("cross"),
      () => clearTimeout(this.timer),
      () => this.changed(),
    );
    for (const [name, erases] of [["pen", false], ["eraser", true]] as const) {
      this.element(name).addEventListener("change", () => (this.sheet.erases = erases));
    }
    this.click("undo", () => this.sheet.undo());
    this.click("clear", () => this.sheet.clear());
    this.click("other", () => this.other());
    this.click("compare", () => {
      this.compare(!this.compared);
      this.changed(false);
    });
    this.click("link", () => void this.link());
    EXAMPLES.forEach(({ name, drawing }) => this.example(name, drawing));
    document.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key !== "z" || event.target instanceof HTMLInputElement) return;
      event.preventDefault();
      if (!root.hidden) this.sheet.undo();
    });
    void this.opened.then((settings) => this.known(settings));
  }

  /** What the page opens with: an address's drawing, the one before the page was closed, or the opening's. */
  begin(address: URLSearchParams): void {
    const kept = stored();
    const given = ["drawing", "picture"].some((name) => address.has(name)) ? address : kept;
    const choices = new URLSearchParams({ seed: String(OPENING.seed), ...Object.fromEntries(given ?? []) });
    for (const [name, value] of address) choices.set(name, value);
    this.options.read(choices);
    this.compare(choices.has("compared"));
    this.shape();
    this.results.begin(Array.from({ length: OPENING.count }, (_, i) => BigInt(OPENING.seed + i)), 1, 1, this.compared);
    if (given) return void this.load(choices);
    this.sheet.begin({ strokes: decode(EXAMPLES[0]!.drawing), base: null });
    const names = ["seed", "pictures", "line", "solver", "calls", "compared"];
    const asked = [...address.keys()].some((name) => names.includes(name));
    this.opening = this.own && !asked;
    if (this.opening) void this.showOpening();
    else this.changed(false);
  }

  /** Shows the drawing that an address, a saved picture or the browser's storage holds. */
  async load(address: URLSearchParams): Promise<void> {
    const newest = this.turn();
    try {
      const strokes = decode(address.get("drawing") ?? "");
      const picture = address.get("picture");
      let base: Sketch["base"] = null;
      if (picture) {
        if (!picture.startsWith("data:image/png;base64,")) throw new Error("the picture is no PNG");
        const image = await fetch(picture).then(async (response) => open(await response.blob()), () => null);
        if (!image) throw new Error("the picture in it is damaged");
        base = fit(image, ...pictureSize(await this.opened));
      }
      if (!newest()) return;
      this.options.read(address);
      this.compare(address.has("compared"));
      this.shape();
      this.sheet.show({ strokes, base });
    } catch (error) {
      if (!newest()) return;
      this.results.end(false);
      this.warn(`The drawing cannot be read: ${error instanceof Error ? error.message : error}.`);
    }
  }

  async give(file: File): Promise<void> {
    const newest = this.turn();
    this.warn("");
    const large = await tooLarge(file, LARGEST);
    if (!newest()) return;
    if (large) {
      return this.warn(`${file.name} has ${large.has} megapixels, and this page opens up to ${large.most}: make it smaller first.`);
    }
    const image = await open(file);
    if (!newest()) return;
    if (!image) return this.warn(`${file.name} is not a picture that this browser can read.`);
    const kind = kindOf(pixels(image, SEEN));
    const base = fit(image, ...pictureSize(await this.opened));
    if (!newest()) return;
    if (isWhite(base)) return this.warn(`${file.name} is white all over: there is nothing to colour.`);
    this.sheet.show({ strokes: [], base });
    this.say(`${file.name} is on the sheet.`);
    if (!this.own || kind === "lines") return;
    const knows = "This network knows black lines on white alone, so its colours will be off.";
    if (kind === "filled") return this.warn(`${file.name} has colours or dark areas. ${knows}`);
    this.warn(`${file.name} looks like a photograph. ${knows}`, "Open it as a photograph", () => this.photograph(file));
  }

  protected chosen(): void {
    this.shape();
    this.changed(false);
  }

  protected timed(): void {
    // Pictures of this tab take seconds.
  }

  protected windows(): void {
    // The pictures of this tab have the network's size.
  }

  protected step({ first, calls, pictures, compared }: Answer<"step">): void {
    const [steps, rounds] = [this.options.table.timesteps.length, this.made];
    this.results.show(pictures, first);
    if (compared) this.results.compare(compared);
    this.show((first * steps + calls * pictures.length) / (rounds * steps));
    this.say(this.compared ? `Comparing pictures: ${first + pictures.length} of ${rounds}.` : "Colouring.");
  }

  protected finish(seconds: number | null): void {
    this.results.end(seconds !== null);
    if (seconds !== null) this.say(`Done in ${seconds.toFixed(1)} s.`);
  }

  /** The size of the network's pictures is known. */
  private known(settings: Settings): void {
    const [height, width] = pictureSize(settings);
    this.shape();
    this.element("size").textContent = this.own ? "" : ` This one is of another export, for ${width} x ${height} pixels.`;
  }

  /** The sheet has the shape of the network's pictures, where it is known, and the lines that it sees. */
  private shape(): void {
    const [height, width] = this.settings ? pictureSize(this.settings) : ([1, 1] as const);
    this.sheet.shape(height, width, this.options.line);
  }

  /** The drawing changed, or an option: it is kept, and coloured after a pause. */
  private changed(pause = true): void {
    const { sheet } = this;
    this.element<HTMLButtonElement>("undo").disabled = !sheet.undoable;
    if (!this.broken) this.warn("");
    clearTimeout(this.timer);
    this.opening = false;
    keep(this.address());
    for (const name of ["other", "compare"]) this.element<HTMLButtonElement>(name).disabled = sheet.empty;
    if (sheet.empty) return this.nothing();
    this.results.wait();
    this.timer = window.setTimeout(() => void this.colour(), pause ? PAUSE : 0);
  }

  private async colour(): Promise<void> {
    const [height, width] = pictureSize(await this.opened);
    try {
      const { compared, options } = this;
      const source = rasterize(this.sheet.sketch, height, width, options.line);
      if (isWhite(source)) return this.nothing(); // all of it was erased, or the picture of a link is
      const seeds = compared ? options.seeds(COMPARED) : options.seeds();
      this.made = seeds.length;
      this.results.begin(seeds, height, width, compared);
      this.translate(source, seeds, false, compared);
    } catch (error) {
      this.stop();
      this.results.end(false);
      this.warn(error instanceof Error ? error.message : String(error));
    }
  }

  /** There is nothing on the sheet. */
  private nothing(): void {
    this.stop();
    this.results.clear();
    this.say("The sheet is empty: draw something.");
  }

  /** Chooses between pictures, and where they differ. */
  private compare(compared: boolean): void {
    this.compared = compared;
    this.element("compare").setAttribute("aria-pressed", String(compared));
  }

  private other(): void {
    this.options.drawSeed();
    this.changed(false);
  }

  /** The pictures of the opening, which the build made with the page's export. */
  private async showOpening(): Promise<void> {
    const image = await open(await (await fetch("opening.png")).blob());
    const seeds = this.options.seeds();
    if (!this.opening) return;
    if (!image) return this.changed(false);
    const { data, width, height } = pixels(image);
    const side = height / seeds.length;
    this.results.begin(seeds, side, width, false);
    const each = data.length / seeds.length;
    this.results.show(seeds.map((_, i) => ({ data: data.slice(i * each, (i + 1) * each), width, height: side })), 0);
    this.results.end(true);
  }

  /** The drawing and the choices that make the same pictures of it. */
  private address(first?: bigint): URLSearchParams {
    const { strokes, base } = this.sheet.sketch;
    const address = new URLSearchParams();
    this.options.write(address);
    if (this.compared) address.set("compared", "");
    if (first !== undefined) address.set("seed", String(first));
    if (base) address.set("picture", canvasOf(base).toDataURL("image/png"));
    address.set("drawing", encode(strokes));
    return address;
  }

  private async link(): Promise<void> {
    const { origin, pathname, search } = location;
    const link = `${origin}${pathname}${search}#${this.address()}`;
    const copied = await navigator.clipboard?.writeText(link).then(() => true, () => false);
    if (!copied) history.replaceState(null, "", link);
    this.say(copied ? "The link is copied: it opens this drawing and these pictures." : "The link is in the address bar.");
  }

  private async save(canvas: HTMLCanvasElement, file: string, seed: bigint): Promise<void> {
    const bytes = new Uint8Array(await (await png(canvas)).arrayBuffer());
    save(withText(bytes, this.address(seed).toString()), `${file}.png`);
  }

  private example(name: string, drawing: string): void {
    const button = document.createElement("button");
    [button.type, button.title] = ["button", `Colour the ${name}`];
    button.setAttribute("aria-label", `Colour the ${name}`);
    const sketch: Sketch = { strokes: decode(drawing), base: null };
    button.append(canvasOf(rasterize(sketch, 96, 96)));
    button.addEventListener("click", () => {
      this.turn(); // a file that is being read comes too late
      this.sheet.show(sketch);
    });
    this.element("examples").append(button);
  }

  private click(id: string, act: () => void): void {
    this.element(id).addEventListener("click", act);
  }
}

/** What the browser kept; nothing where it keeps nothing. */
function stored(): URLSearchParams | null {
  try {
    const text = localStorage.getItem(KEPT);
    return text === null ? null : new URLSearchParams(text);
  } catch {
    return null;
  }
}

function keep(address: URLSearchParams): void {
  if (location.hash) history.replaceState(null, "", location.pathname + location.search); // of another drawing
  try {
    localStorage.setItem(KEPT, address.toString());
  } catch {
    // The browser keeps nothing, or has no space left.
  }
}
