/** The pictures that are being made, side by side, one for each seed. */
import type { Pixels } from "../bbdm";

const SHARP = 512; // pixels along a side, up to which a picture is shown with sharp pixels, beside others

export class Results {
  private canvases: HTMLCanvasElement[] = [];

  constructor(private readonly list: HTMLElement) {}

  /** An empty frame for each seed. */
  begin(seeds: bigint[], height: number, width: number): void {
    const large = Math.max(height, width) > SHARP;
    this.canvases = seeds.map((seed) => {
      const canvas = document.createElement("canvas");
      [canvas.height, canvas.width] = [height, width];
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.classList.toggle("large", large);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Result of seed ${seed}`);
      canvas.dataset.seed = String(seed);
      return canvas;
    });
    const figures = this.canvases.map((canvas, i) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const save = document.createElement("button");
      save.type = "button";
      save.textContent = "Save";
      save.disabled = true;
      save.setAttribute("aria-label", `Save the result of seed ${seeds[i]} as PNG`);
      save.addEventListener("click", () => download(canvas, `seed-${seeds[i]}.png`));
      caption.append(`seed ${seeds[i]}`, save);
      figure.append(canvas, caption);
      return figure;
    });
    this.list.style.setProperty("--columns", String(large ? 1 : seeds.length === 4 ? 2 : seeds.length));
    this.list.replaceChildren(...figures);
    this.list.setAttribute("aria-busy", "true");
  }

  /** Pictures in the frames from the first on. */
  show(pictures: Pixels[], first: number): void {
    pictures.forEach(({ data, width, height }, i) => {
      this.canvases[first + i]?.getContext("2d")!.putImageData(new ImageData(data, width, height), 0, 0);
    });
  }

  /** No more steps come; the pictures can be saved unless they are unfinished. */
  end(finished: boolean): void {
    this.list.setAttribute("aria-busy", "false");
    for (const save of this.list.querySelectorAll("button")) save.disabled = !finished;
  }
}

function download(canvas: HTMLCanvasElement, name: string): void {
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob!);
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }, "image/png");
}
