/** The pictures that are being made: one for each seed, or the first of them, where they differ, and their mean. */
import type { Pixels } from "../pictures";
import type { Compared } from "../protocol";

/** What is shown in a place. */
interface Frame {
  file: string; // the name of its file
  label: string; // for screen readers
  caption: string;
}

export class Results {
  private canvases: HTMLCanvasElement[] = [];
  private compared = false; // whether the second frame is of where pictures differ, and the third of their mean

  /**
   * @param list of the frames
   * @param save called with a finished picture, the name of its file and its seed, or the first of its seeds
   */
  constructor(
    private readonly list: HTMLElement,
    private readonly save: (canvas: HTMLCanvasElement, file: string, seed: bigint) => void,
  ) {}

  /** Other pictures will come. */
  wait(): void {
    this.busy(true);
  }

  /** A frame for each seed, or those that compare them; frames that are there keep their pictures until others come. */
  begin(seeds: bigint[], height: number, width: number, compared: boolean): void {
    const frames = compared ? comparing(seeds) : seeds.map(single);
    if (frames.length !== this.canvases.length || compared !== this.compared) {
      const figures = frames.map(() => copy("frame"));
      this.canvases = figures.map((figure) => figure.querySelector("canvas")!);
      this.list.replaceChildren(...figures, ...(compared ? [copy("legend")] : []));
      this.compared = compared;
    }
    frames.forEach(({ file, label, caption }, i) => {
      const canvas = this.canvases[i]!;
      if (canvas.height !== height || canvas.width !== width) [canvas.height, canvas.width] = [height, width];
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.setAttribute("aria-label", label);
      canvas.parentElement!.querySelector("figcaption")!.textContent = caption;
      const seed = compared ? seeds[0]! : seeds[i]!;
      canvas.parentElement!.querySelector("button")!.onclick = () => this.save(canvas, file, seed);
    });
    this.busy(true);
  }

  /** Pictures in the frames from the first on. */
  show(pictures: Pixels[], first: number): void {
    if (this.compared) pictures = first ? [] : pictures.slice(0, 1);
    pictures.forEach((picture, i) => put(this.canvases[first + i], picture));
  }

  /** What is known of all pictures. */
  compare({ map, mean }: Compared): void {
    put(this.canvases[1], map);
    put(this.canvases[2], mean);
  }

  /** No more steps come; the pictures can be saved unless they are unfinished. */
  end(finished: boolean): void {
    this.busy(false);
    for (const button of this.list.querySelectorAll("button")) button.disabled = !finished;
  }

  /** Empty frames. */
  clear(): void {
    for (const canvas of this.canvases) canvas.getContext("2d")!.clearRect(0, 0, canvas.width, canvas.height);
    this.end(false);
  }

  private busy(busy: boolean): void {
    this.list.setAttribute("aria-busy", String(busy));
    for (const button of busy ? this.list.querySelectorAll("button") : []) button.disabled = true;
  }
}

function single(seed: bigint, i: number): Frame {
  return { file: `seed-${seed}`, label: `Picture ${i + 1}, of seed ${seed}`, caption: "" };
}

function comparing(seeds: bigint[]): Frame[] {
  const [count, first] = [seeds.length, seeds[0]!];
  const made = `${count} pictures, of seeds ${first} to ${seeds.at(-1)}`;
  return [
    { ...single(first, 0), caption: "One picture" },
    { file: `seed-${first}-std-${count}`, label: `Where they differ: ${made}`, caption: `Where ${count} differ` },
    { file: `seed-${first}-mean-${count}`, label: `The average of ${made}`, caption: `Average of ${count}` },
  ];
}

function put(canvas: HTMLCanvasElement | undefined, { data, width, height }: Pixels): void {
  canvas?.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
}

function copy(template: string): HTMLElement {
  const { content } = document.getElementById(template) as HTMLTemplateElement;
  return content.firstElementChild!.cloneNode(true) as HTMLElement;
}
