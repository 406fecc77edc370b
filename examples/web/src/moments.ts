/** Mean and spread of pictures that are known one at a time (Welford 1962), as bbdm.sampling.distribution has them. */
import type { Picture } from "./pictures";

export class Moments {
  count = 0;
  private shape = { channels: 0, height: 0, width: 0 };
  private means = new Float64Array();
  private squares = new Float64Array();

  /** Counts one more picture; all have one shape. */
  add({ data, ...shape }: Picture): void {
    if (!this.count++) [this.shape, this.means, this.squares] = [shape, new Float64Array(data.length), new Float64Array(data.length)];
    data.forEach((value, i) => {
      const step = value - this.means[i]!;
      this.means[i]! += step / this.count;
      this.squares[i]! += step * (value - this.means[i]!);
    });
  }

  get mean(): Picture {
    return { ...this.shape, data: Float32Array.from(this.means) };
  }

  /** Where two pictures or more differ, in grey: their standard deviation, with Bessel's correction, mean over channels. */
  get map(): Picture {
    const { channels, height, width } = this.shape;
    const data = new Float32Array(height * width).fill(-1); // black, level 0
    this.squares.forEach((square, i) => (data[i % data.length]! += Math.sqrt(square / (this.count - 1)) / channels));
    return { data, channels: 1, height, width };
  }
}
