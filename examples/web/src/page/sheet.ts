/** The sheet one draws on: a pen, an eraser and undo. It keeps strokes; its canvas only shows them. */
import { ERASER, GRID, LINE, type Sketch, type Stroke } from "../strokes";

const FINENESS = 720; // pixels of the canvas along its longer side
const STEP = GRID / 64; // that an arrow key moves the cross
const EMPTY: Sketch = { strokes: [], base: null };

export class Sheet {
  erases = false; // what the next stroke does
  sketch: Sketch = EMPTY;
  private line = LINE;
  private height = GRID; // in units of the grid
  private width = GRID;
  private readonly context: CanvasRenderingContext2D;
  private readonly past: Sketch[] = [];
  private stroke: Stroke | null = null; // while the pen is down
  private pointer: number | null = null;
  private cursor: [number, number] | null = null; // the cross, for keys

  /**
   * @param canvas the sheet
   * @param cross shown where keys draw
   * @param begun called when the pen is put down
   * @param changed called after each stroke and each other change
   */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly cross: HTMLElement,
    private readonly begun: () => void,
    private readonly changed: () => void,
  ) {
    this.context = canvas.getContext("2d")!;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"] as const) {
      canvas.addEventListener(name, (event) => event.pointerId === this.pointer && this.lift());
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.lift());
    this.shape(1, 1);
  }

  get empty(): boolean {
    return this.sketch.base === null && !this.sketch.strokes.some(({ erases }) => !erases);
  }

  get undoable(): boolean {
    return this.past.length > 0;
  }

  /** The shape of the network's pictures, and the width of its lines in pixels of 64. */
  shape(height: number, width: number, line = this.line): void {
    const longer = Math.max(height, width);
    [this.height, this.width, this.line] = [(GRID * height) / longer, (GRID * width) / longer, line];
    [this.canvas.height, this.canvas.width] = [height, width].map((side) => Math.round((FINENESS * side) / longer)) as [number, number];
    this.context.scale(FINENESS / GRID, FINENESS / GRID);
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.paint();
  }

  /** Puts another drawing in place of this one, which can be undone. */
  show(sketch: Sketch): void {
    this.lift();
    this.past.push(this.sketch);
    this.put(sketch);
  }

  clear(): void {
    if (!this.empty) this.show(EMPTY);
  }

  undo(): void {
    this.lift();
    const before = this.past.pop();
    if (before) this.put(before);
  }

  /** A first drawing, before which nothing can be undone. */
  begin(sketch: Sketch): void {
    this.past.length = 0;
    this.sketch = sketch;
    this.paint();
  }

  private put(sketch: Sketch): void {
    this.sketch = sketch;
    this.paint();
    this.changed();
  }

  private paint(): void {
    const { context, width, height } = this;
    const { base, strokes } = this.sketch;
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    if (base) {
      const picture = new OffscreenCanvas(base.width, base.height);
      picture.getContext("2d")!.putImageData(new ImageData(base.data, base.width, base.height), 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, 0, 0, width, height);
    }
    for (const stroke of strokes) this.trace(stroke, 0);
  }

  /** Draws the points of a stroke from one on. */
  private trace({ points, erases }: Stroke, from: number): void {
    const { context } = this;
    context.strokeStyle = context.fillStyle = erases ? "white" : "black";
    context.lineWidth = (this.line / 64) * GRID * (erases ? ERASER : 1);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.arc(points[from]!, points[from + 1]!, context.lineWidth / 2, 0, 2 * Math.PI); // a line of no length is not drawn
    context.fill();
    context.beginPath();
    for (let i = from; i < points.length; i += 2) context.lineTo(points[i]!, points[i + 1]!);
    context.stroke();
  }

  /** Draws to a place, from where the pen was. */
  private to(x: number, y: number): void {
    const { points } = (this.stroke ??= { points: [], erases: this.erases });
    const place = [Math.round(x), Math.round(y)] as const;
    if (place[0] === points.at(-2) && place[1] === points.at(-1)) return;
    points.push(...place);
    this.trace(this.stroke, Math.max(0, points.length - 4));
  }

  private place(event: PointerEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.width / this.canvas.clientWidth;
    return [
      (event.clientX - box.left - this.canvas.clientLeft) * scale,
      (event.clientY - box.top - this.canvas.clientTop) * scale,
    ];
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0 || this.stroke) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.cross.hidden = true;
    this.cursor = null;
    this.begun();
    this.to(...this.place(event));
  }

  private move(event: PointerEvent): void {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this.to(...this.place(each));
  }

  private lift(): void {
    const { stroke } = this;
    this.pointer = this.stroke = null;
    this.cross.classList.remove("down");
    if (stroke) {
      this.past.push(this.sketch);
      this.put({ ...this.sketch, strokes: [...this.sketch.strokes, stroke] });
    }
  }

  private key(event: KeyboardEvent): void {
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-STEP, 0],
      ArrowRight: [STEP, 0],
      ArrowUp: [0, -STEP],
      ArrowDown: [0, STEP],
    };
    const move = moves[event.key];
    if ((!move && event.key !== " ") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [x, y] = this.cursor ?? [this.width / 2, this.height / 2];
    const inside = (value: number, side: number): number => Math.max(0, Math.min(side, value));
    const place = [inside(x + (move?.[0] ?? 0), this.width), inside(y + (move?.[1] ?? 0), this.height)] as const;
    this.cursor = [...place];
    this.cross.hidden = false;
    this.cross.style.left = `${(100 * place[0]) / this.width}%`;
    this.cross.style.top = `${(100 * place[1]) / this.height}%`;
    if (!move && this.stroke) return this.lift();
    if (!move) this.begun();
    if (!move || this.stroke) this.to(...place);
    this.cross.classList.toggle("down", this.stroke !== null);
  }
}
