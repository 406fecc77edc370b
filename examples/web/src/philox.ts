/** The noise of bbdm: Philox4x32-10 and Box-Muller, as in bbdm/kernels/philox_numpy.py. A seed is a picture anywhere. */

const ROUNDS = 10;
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57] as const; // Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
const WEYL = [0x9e3779b9, 0xbb67ae85] as const; // golden ratio, sqrt(3) - 1
const TWO_PI = Math.fround(2 * Math.PI);
export const SEEDS = 2n ** 63n; // seeds are in [0, SEEDS)

export type Words = [number, number, number, number];

/** The high 32 bits of a product of two unsigned 32-bit integers. */
function high(a: number, b: number): number {
  const [a1, a0, b1, b0] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carry = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + (middle >>> 16) + (carry >>> 16)) >>> 0;
}

/** Four random words, unsigned 32-bit integers, of a counter and a key of such. */
export function philox4x32(counter: Words, key: [number, number]): Words {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const [h0, l0] = [high(MULTIPLIERS[0], c0), Math.imul(MULTIPLIERS[0], c0) >>> 0];
    const [h1, l1] = [high(MULTIPLIERS[1], c2), Math.imul(MULTIPLIERS[1], c2) >>> 0];
    [c0, c1, c2, c3] = [(h1 ^ c1 ^ k0) >>> 0, l1, (h0 ^ c3 ^ k1) >>> 0, l0];
    [k0, k1] = [(k0 + WEYL[0]) >>> 0, (k1 + WEYL[1]) >>> 0];
  }
  return [c0, c1, c2, c3];
}

/**
 * Standard normals for elements of one image: element i has the index i in (C, H, W) of the grid that the network sees.
 *
 * @param seed in [0, 2^63)
 * @param step the row of the table
 * @param count of elements
 * @param first element, a multiple of 4
 */
export function normal(seed: bigint, step: number, count: number, first = 0): Float32Array {
  if (seed < 0n || seed >= SEEDS) throw new RangeError(`seed must be in [0, 2^63), got ${seed}`);
  const key: [number, number] = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const made = new Float32Array(4 * Math.ceil(count / 4));
  for (let block = 0; 4 * block < count; block++) {
    const words = philox4x32([first / 4 + block, step, 0, 0], key);
    for (const pair of [0, 2] as const) {
      const radius = Math.fround(Math.sqrt(Math.fround(-2 * Math.fround(Math.log(uniform(words[pair]))))));
      const angle = Math.fround(TWO_PI * uniform(words[pair === 0 ? 1 : 3]));
      made[4 * block + pair] = radius * Math.fround(Math.cos(angle));
      made[4 * block + pair + 1] = radius * Math.fround(Math.sin(angle));
    }
  }
  return made.subarray(0, count);
}

/** A float32 in (0, 1) of a word. */
function uniform(word: number): number {
  return ((word >>> 9) + 0.5) * 2 ** -23;
}
