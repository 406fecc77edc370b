/** Two pictures in one place, with a line between before and after that is dragged, or moved by keys. */
import type { Pixels } from "../pictures";

export class Compare {
  readonly after: HTMLCanvasElement;
  private readonly before: HTMLCanvasElement;
  private readonly range: HTMLInputElement;

  constructor(private readonly root: HTMLElement) {
    [this.before, this.after] = [...root.querySelectorAll("canvas")] as [HTMLCanvasElement, HTMLCanvasElement];
    this.range = root.querySelector("input")!;
    this.range.addEventListener("input", () => root.style.setProperty("--at", `${this.range.value}%`));
  }

  /** A picture on both sides. */
  begin(picture: Pixels): void {
    this.root.hidden = false;
    this.root.style.setProperty("--shape", `${picture.width} / ${picture.height}`);
    for (const canvas of [this.before, this.after]) {
      [canvas.height, canvas.width] = [picture.height, picture.width];
      put(canvas, picture);
    }
  }

  /** What is made of it. */
  show(picture: Pixels): void {
    put(this.after, picture);
  }
}

function put(canvas: HTMLCanvasElement, { data, width, height }: Pixels): void {
  canvas.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
}
