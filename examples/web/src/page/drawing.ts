/** The sheet one draws on: a canvas some times finer than the picture, with a pen, an eraser and undo. */
import type { Pixels } from "../bbdm";

const FINENESS = 512; // the canvas has about so many pixels along a side
const UNDO = 30; // steps kept
const STEP = 1; // pixels of the picture that an arrow key moves the cross

export type Tool = "pen" | "eraser";

export class Drawing {
  tool: Tool = "pen";
  lineWidth = 2; // in pixels of the picture
  private height = 64;
  private width = 64;
  private scale = 8; // pixels of the canvas along one of the picture
  private readonly context: CanvasRenderingContext2D;
  private readonly undone: ImageData[] = [];
  private last: [number, number] | null = null; // where the pen is down
  private pointer: number | null = null;
  private cursor: [number, number] | null = null; // the cross, for keys; in pixels of the picture

  /**
   * @param canvas the sheet
   * @param cross shown where keys draw
   * @param changed called with whether anything can be undone, before each change and after an undo
   */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly cross: HTMLElement,
    private readonly changed: (undoable: boolean) => void,
  ) {
    this.context = canvas.getContext("2d", { willReadFrequently: true })!;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"] as const) canvas.addEventListener(name, () => this.lift());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.lift());
    this.resize(this.height, this.width);
  }

  /** A white sheet for pictures of a size. */
  resize(height: number, width: number): void {
    [this.height, this.width] = [height, width];
    this.scale = Math.max(1, Math.round(FINENESS / Math.max(height, width)));
    [this.canvas.height, this.canvas.width] = [height * this.scale, width * this.scale];
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.undone.length = 0;
    this.fill();
    this.changed(false);
  }

  get empty(): boolean {
    return !new Uint32Array(this.content().data.buffer).some((pixel) => pixel !== 0xffffffff);
  }

  clear(): void {
    this.remember();
    this.fill();
  }

  undo(): void {
    const before = this.undone.pop();
    if (before) this.context.putImageData(before, 0, 0);
    this.changed(this.undone.length > 0);
  }

  /** Puts a picture on the white sheet, as large as it fits. Pixels stay sharp where they fit evenly. */
  show(image: ImageBitmap): void {
    this.clear();
    const { width, height } = this.canvas;
    const factor = Math.min(width / image.width, height / image.height);
    const [w, h] = [image.width * factor, image.height * factor];
    this.context.imageSmoothingEnabled = !Number.isInteger(factor);
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  }

  /** The drawing at the picture's size: each pixel is the mean of the canvas's. */
  pixels(): Pixels {
    const { height, width, scale } = this;
    const { data } = this.content();
    const shrunk = new Uint8ClampedArray(4 * height * width);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        for (let c = 0; c < 4; c++) {
          let total = 0;
          for (let i = 0; i < scale; i++) {
            const begin = 4 * ((row * scale + i) * width * scale + column * scale) + c;
            for (let j = 0; j < scale; j++) total += data[begin + 4 * j]!;
          }
          shrunk[4 * (row * width + column) + c] = total / scale ** 2;
        }
      }
    }
    return { data: shrunk, height, width };
  }

  private content(): ImageData {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  private fill(): void {
    this.context.fillStyle = "white";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  private remember(): void {
    this.undone.push(this.content());
    if (this.undone.length > UNDO) this.undone.shift();
    this.changed(true);
  }

  /** Draws to a place on the canvas, from where the pen was. */
  private line(x: number, y: number): void {
    const { context } = this;
    const [fromX, fromY] = this.last ?? [x, y];
    context.strokeStyle = this.tool === "pen" ? "black" : "white";
    context.lineWidth = this.lineWidth * this.scale * (this.tool === "pen" ? 1 : 2);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(fromX, fromY);
    context.lineTo(x, y);
    context.stroke();
    this.last = [x, y];
  }

  private place(event: PointerEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / this.canvas.clientWidth;
    return [
      (event.clientX - box.left - this.canvas.clientLeft) * scale,
      (event.clientY - box.top - this.canvas.clientTop) * scale,
    ];
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0 || this.last) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.cross.hidden = true;
    this.cursor = null;
    this.remember();
    this.line(...this.place(event));
  }

  private move(event: PointerEvent): void {
    if (!this.last || event.pointerId !== this.pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this.line(...this.place(each));
  }

  private lift(): void {
    this.last = this.pointer = null;
    this.cross.classList.remove("down");
  }

  /** Arrows move the cross, and space puts the pen down or lifts it. */
  private key(event: KeyboardEvent): void {
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-STEP, 0],
      ArrowRight: [STEP, 0],
      ArrowUp: [0, -STEP],
      ArrowDown: [0, STEP],
    };
    const move = moves[event.key];
    if ((!move && event.key !== " ") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [x, y] = this.cursor ?? [this.width / 2, this.height / 2];
    const inside = (value: number, side: number): number => Math.max(0, Math.min(side, value));
    const [dx, dy] = move ?? [0, 0];
    const place: [number, number] = [inside(x + dx, this.width), inside(y + dy, this.height)];
    this.cursor = place;
    this.cross.hidden = false;
    this.cross.style.left = `${(100 * place[0]) / this.width}%`;
    this.cross.style.top = `${(100 * place[1]) / this.height}%`;
    if (!move && this.last) return this.lift();
    if (!move) this.remember();
    if (!move || this.last) this.line(place[0] * this.scale, place[1] * this.scale);
    this.cross.classList.toggle("down", this.last !== null);
  }
}
