// The resize of training and of every device: Pillow's antialiased bilinear, aspect ratio not kept.
//
// Each target pixel is a mean of source pixels under a triangle whose half width is the scale (at least 1), along rows
// first and then along columns, in fixed point with rounding to 8 bits after each. (Pillow 13 chooses the order of the
// two by the image's shape, so it may differ by 1 from this and from its older releases.)

const PRECISION = 22;
const HALF = 1 << (PRECISION - 1);

/** Resizes an upright image, given row by row in RGBA from top to bottom, to size×size×3 RGB. */
export class Resizer {
  constructor(width, height, size) {
    this.size = size;
    this.across = taps(width, size);
    this.down = taps(height, size);
    this.narrow = new Uint8Array(height * size * 3);
    this.at = 0;
  }

  row(rgba) {
    const { first, weights } = this.across;
    for (let x = 0; x < this.size; x++) {
      let red = HALF, green = HALF, blue = HALF;
      let from = first[x] * 4;
      for (const weight of weights[x]) {
        red += weight * rgba[from];
        green += weight * rgba[from + 1];
        blue += weight * rgba[from + 2];
        from += 4;
      }
      this.narrow[this.at++] = red >> PRECISION;
      this.narrow[this.at++] = green >> PRECISION;
      this.narrow[this.at++] = blue >> PRECISION;
    }
  }

  square() {
    const stride = this.size * 3;
    const square = new Uint8Array(this.size * stride);
    const sums = new Int32Array(stride);
    for (let y = 0; y < this.size; y++) {
      sums.fill(HALF);
      let from = this.down.first[y] * stride;
      for (const weight of this.down.weights[y]) {
        for (let x = 0; x < stride; x++) sums[x] += weight * this.narrow[from + x];
        from += stride;
      }
      for (let x = 0; x < stride; x++) square[y * stride + x] = sums[x] >> PRECISION;
    }
    return square;
  }
}

/** Return for each target pixel its first source pixel, and the weights of that and the following ones. */
function taps(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const first = new Int32Array(to);
  const weights = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    first[i] = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.trunc(centre + support + 0.5), from) - first[i];
    const shares = Array.from({ length: count }, (_, k) => Math.max(0, 1 - Math.abs((first[i] + k - centre + 0.5) / support)));
    const total = shares.reduce((sum, share) => sum + share, 0);
    weights.push(Int32Array.from(shares, (share) => Math.trunc(0.5 + (share / total) * (1 << PRECISION))));
  }
  return { first, weights };
}
