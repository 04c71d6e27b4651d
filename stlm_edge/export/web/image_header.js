// The header of an image file, read before anything is decoded: format, size, orientation, completeness.

import { Problem } from "./strict_json.js";

export const MAX_PIXELS = 100_000_000;

/**
 * Return `width` and `height` as stored, EXIF `orientation` 1 to 8, `mayBeTransparent`, and the `bytes` without an
 * orientation, since not all browsers rotate what Pillow rotates.
 *
 * Throws a Problem for anything but JPEG, PNG, WebP or BMP, and for truncated, animated or too large images.
 */
export function readHeader(bytes) {
  const [kind, read] = KINDS.find(([, , begins]) => begins(bytes)) ?? [];
  if (!kind) throw new Problem(`not an image that this page can read${otherKind(bytes)}; expected JPEG, PNG, WebP or BMP`);
  let header;
  try {
    header = read(bytes, new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
  } catch (error) {
    if (error instanceof RangeError) throw truncated(kind);
    throw error;
  }
  const { width, height } = header;
  if (!(width && height)) throw new Problem(`${width}×${height} pixels; expected at least one`);
  if (width * height > MAX_PIXELS) {
    const most = MAX_PIXELS.toLocaleString("en");
    throw new Problem(`${width}×${height}, more than ${most} pixels; scale the image down or crop it first`);
  }
  return { orientation: 1, bytes, mayBeTransparent: true, ...header };
}

const KINDS = [
  ["JPEG", jpeg, (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff],
  ["PNG", png, (bytes) => text(bytes, 0, 8) === "\x89PNG\r\n\x1a\n"],
  ["WebP", webp, (bytes) => text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 4) === "WEBP"],
  ["BMP", bmp, (bytes) => text(bytes, 0, 2) === "BM"],
];

function otherKind(bytes) {
  if (!bytes.length) return " (the file is empty)";
  if (/^(II\*|MM\0\*)/.test(text(bytes, 0, 4))) return " (a TIFF)";
  if (/^GIF8/.test(text(bytes, 0, 4))) return " (a GIF)";
  return "";
}

function truncated(kind) {
  return new Problem(`a ${kind} that is truncated or damaged; expected an intact image, copy it from the camera again`);
}

function animated() {
  return new Problem("animated; expected a single image, save one frame by itself");
}

function jpeg(bytes, view) {
  const header = {};
  let at = 2;
  for (;;) {
    while (view.getUint8(at) === 0xff && view.getUint8(at + 1) === 0xff) at++;
    if (view.getUint8(at) !== 0xff) throw truncated("JPEG");
    const marker = view.getUint8(at + 1);
    const length = view.getUint16(at + 2);
    const from = at + 4, end = at + 2 + length;
    if (end > bytes.length || length < 2) throw truncated("JPEG");
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      if (view.getUint8(from + 5) > 3) throw new Problem("colours as CMYK; expected grey or RGB, save it as such");
      Object.assign(header, { height: view.getUint16(from + 1), width: view.getUint16(from + 3) });
    } else if (marker === 0xe1 && text(bytes, from, 6) === "Exif\0\0") {
      header.exif ??= exif(bytes, view, from + 6, end);
    } else if (marker === 0xe1 && text(bytes, from, 4) === "http") {
      header.xmp ??= xmp(bytes, from, end);
    }
    at = end;
    if (marker === 0xda) break;
  }
  if (!header.width) throw truncated("JPEG");
  // Within the scan data, this marker can only be the end; without it, the file is truncated.
  let ended = false;
  for (let i = bytes.length - 2; i >= at && !ended; i--) ended = bytes[i] === 0xff && bytes[i + 1] === 0xd9;
  if (!ended) throw truncated("JPEG");
  return { ...header, mayBeTransparent: false, ...withoutOrientation(bytes, view, header) };
}

function png(bytes, view) {
  const header = { width: view.getUint32(16), height: view.getUint32(20), bytes };
  for (let at = 8; ; ) {
    const length = view.getUint32(at), kind = text(bytes, at + 4, 4), from = at + 8, end = from + length;
    if (end + 4 > bytes.length) throw truncated("PNG");
    if (kind === "IEND") break;
    if (kind === "acTL" && view.getUint32(from) > 1) throw animated();
    if (kind === "iTXt" && text(bytes, from, 17) === "XML:com.adobe.xmp") header.xmp ??= xmp(bytes, from, end);
    if (kind === "eXIf") {
      header.exif ??= exif(bytes, view, from, end);
      header.chunk ??= [at, end + 4];
    }
    at = end + 4;
  }
  if (header.chunk) {
    // The whole chunk is removed, since its checksum would no longer match.
    const [from, to] = header.chunk;
    header.bytes = new Uint8Array(bytes.length - (to - from));
    header.bytes.set(bytes.subarray(0, from));
    header.bytes.set(bytes.subarray(to), from);
  }
  return { ...header, orientation: header.exif?.orientation ?? header.xmp ?? 1 };
}

function webp(bytes, view) {
  if (view.getUint32(4, true) + 8 > bytes.length) throw truncated("WebP");
  const header = {};
  for (let at = 12; at + 8 <= bytes.length; ) {
    const kind = text(bytes, at, 4), length = view.getUint32(at + 4, true), from = at + 8, end = from + length;
    if (end > bytes.length) throw truncated("WebP");
    if (kind === "VP8X") {
      if (view.getUint8(from) & 2) throw animated();
      header.width = 1 + (view.getUint32(from + 4, true) & 0xffffff);
      header.height = 1 + (view.getUint32(from + 6, true) >>> 8);
    } else if (kind === "VP8 ") {
      header.width ??= view.getUint16(from + 6, true) & 0x3fff;
      header.height ??= view.getUint16(from + 8, true) & 0x3fff;
    } else if (kind === "VP8L") {
      const packed = view.getUint32(from + 1, true);
      header.width ??= 1 + (packed & 0x3fff);
      header.height ??= 1 + ((packed >>> 14) & 0x3fff);
    } else if (kind === "EXIF") {
      header.exif ??= exif(bytes, view, from + (text(bytes, from, 6) === "Exif\0\0" ? 6 : 0), end);
    } else if (kind === "XMP ") {
      header.xmp ??= xmp(bytes, from, end);
    }
    at = end + (length & 1);
  }
  return { ...header, ...withoutOrientation(bytes, view, header) };
}

function bmp(bytes, view) {
  const old = view.getUint32(14, true) === 12;
  const width = old ? view.getUint16(18, true) : view.getInt32(18, true);
  const height = old ? view.getUint16(20, true) : Math.abs(view.getInt32(22, true));
  if (view.getUint32(10, true) >= bytes.length) throw truncated("BMP");
  return { width: Math.max(width, 0), height };
}

/** Return the orientation in EXIF data (EXIF 2.3) that begins at `start`, and its offset, or undefined. */
function exif(bytes, view, start, end) {
  const little = text(bytes, start, 2) === "II";
  const short = (at) => (at + 2 <= end ? view.getUint16(at, little) : 0);
  const long = (at) => (at + 4 <= end ? view.getUint32(at, little) : 0);
  if (short(start + 2) !== 42) return undefined;
  const directory = start + long(start + 4);
  for (let i = 0, at = directory + 2; i < short(directory); i++, at += 12) {
    const orientation = short(at + 8);
    if (short(at) === 0x0112 && orientation >= 1 && orientation <= 8) return { orientation, at: at + 8, little };
  }
  return undefined;
}

function xmp(bytes, from, end) {
  const match = /tiff:Orientation(?:="|>)([1-8])/.exec(text(bytes, from, end - from));
  return match ? Number(match[1]) : undefined;
}

/** Return the orientation, and a copy of the bytes in which it is 1. */
function withoutOrientation(bytes, view, { exif, xmp }) {
  if (!exif) return { orientation: xmp ?? 1 };
  const copy = bytes.slice();
  new DataView(copy.buffer).setUint16(exif.at, 1, exif.little);
  return { orientation: exif.orientation, bytes: copy };
}

function text(bytes, from, length) {
  let letters = "";
  for (const byte of bytes.subarray(from, from + length)) letters += String.fromCharCode(byte);
  return letters;
}
