/** The tab of photographs: one is restored at its own size, by windows, and compared with what it was. */
import { windowCount } from "../bbdm";
import { kindOf } from "../kind";
import type { Pixels } from "../pictures";
import { Compare } from "./compare";
import { open, pixels, png, save, tooLarge } from "./files";
import { Tab, type Answer } from "./tab";

const LARGEST = 2 ** 24; // pixels: the worker has some ten arrays of 4 bytes for each of their values
const SEEN = 256; // pixels along a side of a picture whose kind is told

export class Photographs extends Tab {
  protected override readonly slow = true;
  private readonly compare: Compare;
  private photograph: Pixels | null = null;
  private name = "";
  private pace: number | null = null; // seconds of a network call on a window, as far as they are known
  private asked = 0; // windows times steps of the translation that goes on
  private begun: { time: number; share: number } | null = null; // when the first windows were done

  /** @param drawing called with a file that is one */
  constructor(
    root: HTMLElement,
    model: string,
    private readonly own: boolean,
    private readonly drawing: (file: File) => void,
  ) {
    super(root, model, ["solver", "calls", "seed", "device"], "mean");
    this.compare = new Compare(this.element("compare"));
    this.element("again").addEventListener("click", () => void this.restore());
    this.element("stop").addEventListener("click", () => {
      this.stop();
      this.say("Stopped.");
    });
    this.element("save").addEventListener("click", async () => {
      save(await png(this.compare.after), `${this.name.replace(/\.\w+$/, "")}-restored.png`);
    });
  }

  /** Takes the choices of an address. */
  begin(address: URLSearchParams): void {
    this.options.read(address);
  }

  async give(file: File): Promise<void> {
    const newest = this.turn();
    this.open();
    this.warn("");
    const large = await tooLarge(file, LARGEST);
    if (!newest()) return;
    if (large) return this.refuse(file, large);
    const image = await open(file);
    if (!newest()) return;
    if (!image) return this.warn(`${file.name} is not a picture that this browser can read, or is too large for it.`);
    if (image.width * image.height > LARGEST) {
      const [has, most] = [image.width * image.height, LARGEST].map((count) => (count / 1e6).toFixed(1));
      return this.refuse(file, { has: has!, most: most! }); // of a format whose header was not read
    }
    this.stop();
    this.photograph = pixels(image);
    this.name = file.name;
    this.compare.begin(this.photograph);
    this.element("drop").classList.add("small");
    if (this.own && kindOf(pixels(image, SEEN)) !== "photograph") {
      const text = `${file.name} looks like a drawing. This network knows photographs alone.`;
      this.warn(text, "Open it as a drawing", () => this.drawing(file));
    }
    await this.restore();
  }

  private refuse(file: File, { has, most }: { has: string; most: string }): void {
    const limit = `${file.name} has ${has} megapixels, and this page restores up to ${most}.`;
    this.warn(`${limit} The command takes any size: bbdm restore ${file.name}`);
  }

  /** Another result is to be had: it takes long, so it is not made without being asked for. */
  protected chosen(): void {
    const seconds = this.expected();
    if (this.photograph && !this.running && seconds !== null) this.say(`With these choices: about ${duration(seconds)}.`);
    this.element<HTMLButtonElement>("again").disabled = this.photograph === null || this.running > 0;
  }

  /** A first call was timed: what waits for it begins now. */
  protected timed(seconds: number): void {
    this.pace = seconds;
    if (this.running) this.announce();
  }

  /** The windows of the photograph: one where it is no larger. */
  private parts(): number {
    const { height, width } = this.photograph!;
    return Math.max(1, windowCount(this.settings!, height, width));
  }

  /** The seconds that the photograph will take; null where they are not known. */
  private expected(): number | null {
    if (this.pace === null || !this.photograph || !this.settings) return null;
    return this.pace * this.parts() * this.options.table.timesteps.length;
  }

  /** Says what is made, and how long it will take. */
  private announce(): void {
    const { height, width } = this.photograph!;
    const [count, seconds] = [this.parts(), this.expected()];
    const time = seconds === null ? "" : `, about ${duration(seconds)}`;
    this.say(`${this.name}: ${width} x ${height} pixels in ${count} ${count === 1 ? "window" : "windows"}${time}.`);
  }

  protected windows({ calls, done, total }: Answer<"windows">): void {
    const steps = this.options.table.timesteps.length;
    const share = (calls + done / total) / steps;
    const now = performance.now();
    this.begun ??= { time: now, share };
    const { time, share: before } = this.begun;
    const left = share > before ? `: ${duration(((now - time) / (share - before)) * (1 - share) / 1000)} left` : "";
    this.show(share);
    this.say(`Step ${calls + 1} of ${steps}, window ${done} of ${total}${left}.`);
  }

  protected step({ calls, pictures }: Answer<"step">): void {
    for (const picture of pictures) this.compare.show(opaqueAs(picture, this.photograph!));
    this.show(calls / this.options.table.timesteps.length);
  }

  protected finish(seconds: number | null): void {
    this.element<HTMLButtonElement>("save").disabled = seconds === null;
    this.element("stop").hidden = true;
    this.busy(false);
    if (seconds === null) this.chosen(); // what failed or was stopped can be tried again
    else {
      this.pace = seconds / this.asked;
      this.say(`Done in ${duration(seconds)}.`);
    }
  }

  private busy(busy: boolean): void {
    this.element("compare").setAttribute("aria-busy", String(busy));
  }

  private async restore(): Promise<void> {
    const { photograph } = this;
    if (!photograph) return;
    await this.opened;
    const { height, width } = photograph;
    try {
      const seeds = this.options.seeds(1);
      this.begun = null;
      this.translate({ height, width, data: photograph.data.slice() }, seeds, true);
      this.asked = this.parts() * this.options.table.timesteps.length;
      this.announce();
      this.element<HTMLButtonElement>("save").disabled = this.element<HTMLButtonElement>("again").disabled = true;
      this.element("stop").hidden = false;
      this.busy(true);
    } catch (error) {
      this.warn(error instanceof Error ? error.message : String(error));
    }
  }
}

/** A result with its source's transparency. */
function opaqueAs(picture: Pixels, source: Pixels): Pixels {
  for (let i = 3; i < source.data.length; i += 4) picture.data[i] = source.data[i]!;
  return picture;
}

function duration(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
}
