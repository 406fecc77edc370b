/** A picture on the sheet that is larger than what the network knows, which can be translated at its own size. */
import { windowCount, type Pixels, type Settings } from "../bbdm";

const LARGEST = 2 ** 24; // pixels: the worker has five arrays of 4 bytes for each of their values

export class Photo {
  private image: ImageBitmap | null = null;

  /**
   * @param field what is shown where there is such a picture
   * @param box checked to translate it at its own size
   * @param text says what that means
   */
  constructor(
    private readonly field: HTMLElement,
    private readonly box: HTMLInputElement,
    private readonly text: HTMLElement,
  ) {}

  /** Offers a picture, where it is larger. */
  offer(image: ImageBitmap, settings: Settings): void {
    const { height, width } = image;
    const windows = windowCount(settings, height, width);
    const taken = height * width <= LARGEST;
    this.field.hidden = windows === 0;
    this.image = windows && taken ? image : null;
    this.box.disabled = !taken;
    const means = taken ? `${windows} windows a call` : `at most ${(LARGEST / 1e6).toFixed(1)} megapixels`;
    this.text.textContent = `At its own size, ${width} x ${height}: ${means}`;
  }

  /** Whether the picture is to be translated at its own size. */
  get chosen(): boolean {
    return this.image !== null && this.box.checked;
  }

  /** Its pixels, on white. */
  pixels(): Pixels {
    const { width, height } = this.image!;
    const context = new OffscreenCanvas(width, height).getContext("2d")!;
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(this.image!, 0, 0);
    return { data: context.getImageData(0, 0, width, height).data as Pixels["data"], width, height };
  }

  forget(): void {
    this.image = null;
    this.field.hidden = true;
  }
}
