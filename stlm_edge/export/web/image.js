// The user's images: decoded, upright, RGB, and resized as in training. What can't be decoded exactly is refused.

import { readHeader } from "./image_header.js";
import { Resizer } from "./resize.js";
import { Problem } from "./strict_json.js";

const MAX_FILE_BYTES = 256e6;
const TILE_WIDTH = 4096, TILE_HEIGHT = 128;
const MIN_SHOWN = 480, MAX_SHOWN = 1280; // longer side on the screen

// Canvas transforms that draw a stored image of width w and height h upright (EXIF 2.3, tag Orientation).
const UPRIGHT = {
  1: () => [1, 0, 0, 1, 0, 0],
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

/** Load an image file: `square`, size×size×3 RGB for the network, and `shown`, an upright bitmap for the screen. */
export async function loadFile(file, size, show = true) {
  if (file.size > MAX_FILE_BYTES) throw new Problem(`${Math.round(file.size / 1e6)} MB; expected at most 256 MB`);
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Problem("can't be read; check that the file still exists");
  }
  const header = readHeader(bytes);
  let bitmap;
  try {
    const blob = new Blob([header.bytes]);
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Problem(
      `${header.width}×${header.height}, and this browser can't decode it; expected an intact image that fits into memory`,
    );
  }
  try {
    if (bitmap.width !== header.width || bitmap.height !== header.height) {
      throw new Problem("its size differs from its header; save it again as PNG or JPEG");
    }
    const orientation = header.orientation;
    const square = toSquare(bitmap, size, orientation, header.mayBeTransparent);
    return { square, shown: show ? toShow(bitmap, orientation) : null };
  } finally {
    bitmap.close();
  }
}

/** Load a frame of the camera, an ImageBitmap, and close it. */
export function loadFrame(bitmap, size) {
  const loaded = { square: toSquare(bitmap, size, 1, false), shown: toShow(bitmap, 1) };
  bitmap.close();
  return loaded;
}

/** Return the pixels of a PNG of size×size. */
export async function loadPixels(bytes, size) {
  const header = readHeader(bytes);
  if (header.width !== size || header.height !== size) {
    throw new Problem(`golden: ${header.width}×${header.height}, expected ${size}×${size}; export the bundle again`);
  }
  const bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  return toSquare(bitmap, size, 1, false);
}

function toSquare(bitmap, size, orientation, mayBeTransparent) {
  const [width, height] = uprightSize(bitmap, orientation);
  const [a, b, c, d, e, f] = UPRIGHT[orientation](bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(Math.min(width, TILE_WIDTH), Math.min(height, TILE_HEIGHT));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.globalCompositeOperation = "copy";
  const resizer = new Resizer(width, height, size);
  const strip = new Uint8ClampedArray(width * canvas.height * 4);
  for (let top = 0; top < height; top += canvas.height) {
    const rows = Math.min(canvas.height, height - top);
    for (let left = 0; left < width; left += canvas.width) {
      const columns = Math.min(canvas.width, width - left);
      context.setTransform(a, b, c, d, e - left, f - top);
      context.drawImage(bitmap, 0, 0);
      const { data } = context.getImageData(0, 0, columns, rows);
      if (mayBeTransparent) refuseTransparent(data);
      for (let y = 0; y < rows; y++) {
        strip.set(data.subarray(y * columns * 4, (y + 1) * columns * 4), (y * width + left) * 4);
      }
    }
    for (let y = 0; y < rows; y++) resizer.row(strip.subarray(y * width * 4, (y + 1) * width * 4));
  }
  return resizer.square();
}

/** Refuse transparency: a canvas loses the colour of transparent pixels, which the Python package keeps. */
function refuseTransparent(rgba) {
  for (let i = 3; i < rgba.length; i += 4) {
    if (rgba[i] !== 255) throw new Problem("partly transparent; expected an opaque image, save it without alpha");
  }
}

function toShow(bitmap, orientation) {
  const [width, height] = uprightSize(bitmap, orientation);
  const longer = Math.max(width, height);
  const scale = Math.min(Math.max(longer, MIN_SHOWN), MAX_SHOWN) / longer;
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.scale(canvas.width / width, canvas.height / height);
  context.transform(...UPRIGHT[orientation](bitmap.width, bitmap.height));
  context.drawImage(bitmap, 0, 0);
  return canvas.transferToImageBitmap();
}

function uprightSize(bitmap, orientation) {
  return orientation < 5 ? [bitmap.width, bitmap.height] : [bitmap.height, bitmap.width];
}
