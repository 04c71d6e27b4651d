// Golden images: real inputs with the trained model's outputs, which a device is checked with.

import { loadFile, loadPixels } from "./image.js";

/**
 * Read a golden image: its manifest `entry`, the image's `file`, the stored `tensor` size×size×3, the trained model's
 * sampled `map`, and `resizeDifference`, by how many grey levels this browser's decoding and resizing differ.
 */
export async function readGolden(entry, manifest, read) {
  const size = manifest.input.size;
  const file = new Blob([await read(entry.image)]);
  const stored = await read(entry.tensor.file);
  const tensor = entry.tensor.encoding === "raw" ? stored : await loadPixels(stored, size);
  const view = new DataView((await read(entry.map.file)).buffer);
  const map = Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(index * 4, true));
  const { square } = await loadFile(file, size, false);
  const resizeDifference = square.reduce((largest, value, index) => Math.max(largest, Math.abs(value - tensor[index])), 0);
  return { entry, file, tensor, map, resizeDifference };
}
