// Anomaly maps as images: a dark-to-bright colour scale with the threshold in its middle.

const MAX_DRAWN = 640; // pixels of the longer side; the screen enlarges it
const ANCHORS = [
  [4, 5, 18], [48, 16, 88], [104, 26, 112], [160, 42, 98], [212, 72, 66], [244, 120, 30], [252, 178, 36], [252, 255, 164],
];

/** RGBA of the 256 levels: transparent up to a quarter of the scale, opaque from its middle on. */
const COLOURS = new Uint8Array(256 * 4);
for (let level = 0; level < 256; level++) {
  const place = (level / 255) * (ANCHORS.length - 1);
  const below = Math.min(Math.trunc(place), ANCHORS.length - 2);
  for (let channel = 0; channel < 3; channel++) {
    const low = ANCHORS[below][channel], high = ANCHORS[below + 1][channel];
    COLOURS[level * 4 + channel] = Math.round(low + (place - below) * (high - low));
  }
  COLOURS[level * 4 + 3] = Math.round(255 * Math.min(Math.max((level / 255 - 0.25) / 0.25, 0), 1));
}
const PIXELS = new Uint32Array(COLOURS.buffer);

/** Return a bitmap to draw over an image: the map S×S in colours, at the size of the screen. */
export function heatmapOver(shown, map, decisionThreshold) {
  const scale = Math.min(1, MAX_DRAWN / Math.max(shown.width, shown.height));
  const width = Math.max(1, Math.round(shown.width * scale)), height = Math.max(1, Math.round(shown.height * scale));
  const canvas = new OffscreenCanvas(width, height);
  const rgba = layer(map, Math.sqrt(map.length), decisionThreshold, width, height);
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  return canvas.transferToImageBitmap();
}

/** Return RGBA width×height to draw over the image: transparent where it is normal, opaque from the threshold on. */
export function layer(map, side, decisionThreshold, width, height) {
  const levels = new Float32Array(map.length);
  const span = Math.max(decisionThreshold.map_high - decisionThreshold.map_low, 1e-9);
  for (let i = 0; i < map.length; i++) {
    levels[i] = Math.round(255 * Math.min(Math.max((map[i] - decisionThreshold.map_low) / span, 0), 1));
  }
  const pixels = new Uint32Array(width * height);
  const columns = places(side, width), rows = places(side, height);
  for (let y = 0, at = 0; y < height; y++) {
    const top = rows.low[y] * side, bottom = rows.high[y] * side, down = rows.share[y];
    for (let x = 0; x < width; x++, at++) {
      const left = columns.low[x], right = columns.high[x], across = columns.share[x];
      const above = levels[top + left] + across * (levels[top + right] - levels[top + left]);
      const under = levels[bottom + left] + across * (levels[bottom + right] - levels[bottom + left]);
      pixels[at] = PIXELS[Math.round(above + down * (under - above))];
    }
  }
  return new Uint8ClampedArray(pixels.buffer);
}

/** Bilinear interpolation: for each of `to` pixels the two of `from` it lies between, and the weight of the second. */
function places(from, to) {
  const low = new Int32Array(to), high = new Int32Array(to), share = new Float32Array(to);
  for (let i = 0; i < to; i++) {
    const place = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    low[i] = Math.trunc(place);
    high[i] = Math.min(low[i] + 1, from - 1);
    share[i] = place - low[i];
  }
  return { low, high, share };
}
