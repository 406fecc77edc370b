/** The pictures that are being made, one for each seed. */
import type { Pixels } from "../pictures";

export class Results {
  private canvases: HTMLCanvasElement[] = [];

  /**
   * @param list of the frames
   * @param save called with a finished picture and its number
   */
  constructor(
    private readonly list: HTMLElement,
    private readonly save: (canvas: HTMLCanvasElement, seed: bigint) => void,
  ) {}

  /** Other pictures will come. */
  wait(): void {
    this.busy(true);
  }

  /** A frame for each seed; frames that are there keep their pictures until others come. */
  begin(seeds: bigint[], height: number, width: number): void {
    if (seeds.length !== this.canvases.length) {
      const figures = seeds.map(() => this.frame());
      this.canvases = figures.map((figure) => figure.querySelector("canvas")!);
      this.list.replaceChildren(...figures);
    }
    this.canvases.forEach((canvas, i) => {
      if (canvas.height !== height || canvas.width !== width) [canvas.height, canvas.width] = [height, width];
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.setAttribute("aria-label", `Picture ${i + 1}, of seed ${seeds[i]}`);
      canvas.dataset.seed = String(seeds[i]);
    });
    this.busy(true);
  }

  /** Pictures in the frames from the first on. */
  show(pictures: Pixels[], first: number): void {
    pictures.forEach(({ data, width, height }, i) => {
      this.canvases[first + i]?.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
    });
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

  private frame(): HTMLElement {
    const made = (document.getElementById("frame") as HTMLTemplateElement).content.cloneNode(true) as DocumentFragment;
    const [canvas, button] = [made.querySelector("canvas")!, made.querySelector("button")!];
    button.addEventListener("click", () => this.save(canvas, BigInt(canvas.dataset.seed!)));
    return made.firstElementChild as HTMLElement;
  }
}
