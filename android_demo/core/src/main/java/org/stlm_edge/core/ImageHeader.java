package org.stlm_edge.core;

import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Header of an image file, read before anything is decoded: format, size, orientation, and whether the file is
 * complete. Android's decoder accepts a truncated file, and leaves the rest grey.
 */
public final class ImageHeader {
    public static final int MAX_PIXELS = 100_000_000;

    private static final Pattern XMP_ORIENTATION = Pattern.compile("tiff:Orientation(?:=\"|>)([1-8])");
    private static final int MAX_XMP = 1 << 20; // bytes that are searched for the orientation

    /** Size in pixels, as stored. */
    public final int width;

    public final int height;
    /** EXIF orientation, 1 to 8. */
    public final int orientation;

    private final ByteBuffer bytes;
    private long wide;
    private long high;
    private int exif;
    private int xmp;

    /**
     * Reads the header; the buffer may be a mapped file.
     *
     * @throws IOException if it is no JPEG, PNG, WebP or BMP, or is truncated, animated, CMYK or too large
     */
    public static ImageHeader read(ByteBuffer file) throws IOException {
        return new ImageHeader(file.slice().order(ByteOrder.BIG_ENDIAN));
    }

    private ImageHeader(ByteBuffer bytes) throws IOException {
        this.bytes = bytes;
        String kind = kind();
        try {
            switch (kind) {
                case "JPEG":
                    jpeg();
                    break;
                case "PNG":
                    png();
                    break;
                case "WebP":
                    webp();
                    break;
                default:
                    bmp();
            }
        } catch (IndexOutOfBoundsException | BufferUnderflowException beyond) {
            throw truncated(kind);
        }
        if (wide < 1 || high < 1) {
            throw new IOException(wide + "×" + high + " pixels; expected at least one");
        }
        if (wide * high > MAX_PIXELS) {
            throw new IOException(String.format(Locale.ENGLISH,
                    "%d×%d, more than %,d pixels; scale the image down or crop it first", wide, high, MAX_PIXELS));
        }
        width = (int) wide;
        height = (int) high;
        orientation = exif > 0 ? exif : xmp > 0 ? xmp : 1;
    }

    private String kind() throws IOException {
        if (text(0, 3).equals("\u00ff\u00d8\u00ff")) {
            return "JPEG";
        }
        if (text(0, 8).equals("\u0089PNG\r\n\u001a\n")) {
            return "PNG";
        }
        if (text(0, 4).equals("RIFF") && text(8, 4).equals("WEBP")) {
            return "WebP";
        }
        if (text(0, 2).equals("BM")) {
            return "BMP";
        }
        String begins = text(0, 4);
        String other = bytes.limit() == 0
                ? " (the file is empty)"
                : begins.equals("II*\0") || begins.equals("MM\0*")
                        ? " (a TIFF)"
                        : begins.equals("GIF8") ? " (a GIF)" : text(4, 4).equals("ftyp") ? " (a HEIF or AVIF)" : "";
        throw new IOException("not an image that this app can read" + other + "; expected JPEG, PNG, WebP or BMP");
    }

    private static IOException truncated(String kind) {
        return new IOException(
                "a " + kind
                        + " that is truncated or damaged; expected an intact image, copy it from the camera again");
    }

    private static IOException animated() {
        return new IOException("animated; expected a single image, save one frame by itself");
    }

    private void jpeg() throws IOException {
        int at = 2;
        for (int marker = 0; marker != 0xda; ) {
            while (byteAt(at) == 0xff && byteAt(at + 1) == 0xff) {
                at++;
            }
            if (byteAt(at) != 0xff) {
                throw truncated("JPEG");
            }
            marker = byteAt(at + 1);
            int length = shortAt(at + 2);
            int from = at + 4;
            int end = at + 2 + length;
            if (end > bytes.limit() || length < 2) {
                throw truncated("JPEG");
            }
            if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
                if (byteAt(from + 5) > 3) {
                    throw new IOException("colours as CMYK; expected grey or RGB, save it as such");
                }
                high = shortAt(from + 1);
                wide = shortAt(from + 3);
            } else if (marker == 0xe1 && text(from, 6).equals("Exif\0\0")) {
                exif(from + 6, end);
            } else if (marker == 0xe1 && text(from, 4).equals("http")) {
                xmp(from, end);
            }
            at = end;
        }
        if (wide == 0) {
            throw truncated("JPEG");
        }
        // Within the scan data, an end marker is unambiguous; without one the file is truncated.
        for (int i = bytes.limit() - 2; i >= at; i--) {
            if (byteAt(i) == 0xff && byteAt(i + 1) == 0xd9) {
                return;
            }
        }
        throw truncated("JPEG");
    }

    private void png() throws IOException {
        wide = longAt(16);
        high = longAt(20);
        long at = 8;
        for (String kind = ""; !kind.equals("IEND"); ) {
            long end = at + 8 + longAt(at);
            int from = place(at + 8);
            kind = text(place(at + 4), 4);
            if (end + 4 > bytes.limit()) {
                throw truncated("PNG");
            }
            if (kind.equals("acTL") && longAt(from) > 1) {
                throw animated();
            } else if (kind.equals("iTXt") && text(from, 17).equals("XML:com.adobe.xmp")) {
                xmp(from, (int) end);
            } else if (kind.equals("eXIf")) {
                exif(from, (int) end);
            }
            at = end + 4;
        }
    }

    private void webp() throws IOException {
        if (littleAt(4) + 8 > bytes.limit()) {
            throw truncated("WebP");
        }
        for (long at = 12; at + 8 <= bytes.limit(); ) {
            long length = littleAt(at + 4);
            long end = at + 8 + length;
            int from = place(at + 8);
            if (end > bytes.limit()) {
                throw truncated("WebP");
            }
            switch (text((int) at, 4)) {
                case "VP8X":
                    if ((byteAt(from) & 2) != 0) {
                        throw animated();
                    }
                    wide = 1 + (littleAt(from + 4) & 0xffffff);
                    high = 1 + (littleAt(from + 6) >>> 8);
                    break;
                case "VP8 ":
                    size(littleAt(from + 6) & 0x3fff, (littleAt(from + 6) >>> 16) & 0x3fff);
                    break;
                case "VP8L":
                    size(1 + (littleAt(from + 1) & 0x3fff), 1 + ((littleAt(from + 1) >>> 14) & 0x3fff));
                    break;
                case "EXIF":
                    exif(from + (text(from, 6).equals("Exif\0\0") ? 6 : 0), (int) end);
                    break;
                case "XMP ":
                    xmp(from, (int) end);
                    break;
                default: // irrelevant here
            }
            at = end + (length & 1);
        }
    }

    private void size(long width, long height) {
        if (wide == 0) {
            wide = width;
            high = height;
        }
    }

    private void bmp() throws IOException {
        boolean old = littleAt(14) == 12;
        wide = old ? littleAt(18) & 0xffff : (int) littleAt(18);
        high = old ? littleAt(18) >>> 16 : Math.abs((long) (int) littleAt(22));
        if (littleAt(10) >= bytes.limit()) {
            throw truncated("BMP");
        }
        wide = Math.max(wide, 0);
    }

    /** Reads the orientation from EXIF 2.3 data at {@code start}, if it has one. */
    private void exif(int start, int end) {
        boolean little = text(start, 2).equals("II");
        if (exif > 0 || tiff(start + 2, 2, end, little) != 42) {
            return;
        }
        long directory = start + tiff(start + 4, 4, end, little);
        long entries = tiff(directory, 2, end, little);
        for (long i = 0, at = directory + 2; i < entries && exif == 0; i++, at += 12) {
            long orientation = tiff(at + 8, 2, end, little);
            if (tiff(at, 2, end, little) == 0x0112 && orientation >= 1 && orientation <= 8) {
                exif = (int) orientation;
            }
        }
    }

    private long tiff(long at, int width, int end, boolean little) {
        if (at + width > end) {
            return 0;
        }
        long value = 0;
        for (int i = 0; i < width; i++) {
            value |= (long) byteAt(place(at + i)) << 8 * (little ? i : width - 1 - i);
        }
        return value;
    }

    private void xmp(int from, int end) {
        if (xmp == 0) {
            Matcher found = XMP_ORIENTATION.matcher(text(from, Math.min(end - from, MAX_XMP)));
            xmp = found.find() ? Integer.parseInt(found.group(1)) : 0;
        }
    }

    private int byteAt(int at) {
        return bytes.get(at) & 255;
    }

    private int shortAt(int at) {
        return bytes.getShort(at) & 0xffff;
    }

    private long longAt(long at) {
        return bytes.getInt(place(at)) & 0xffffffffL;
    }

    private long littleAt(long at) {
        return Integer.reverseBytes(bytes.getInt(place(at))) & 0xffffffffL;
    }

    private static int place(long at) {
        if (at > Integer.MAX_VALUE) {
            throw new IndexOutOfBoundsException();
        }
        return (int) at;
    }

    /** Returns ASCII characters; fewer at the end of the file. */
    private String text(int from, int length) {
        byte[] letters = new byte[Math.max(0, Math.min(length, bytes.limit() - from))];
        for (int i = 0; i < letters.length; i++) {
            letters[i] = bytes.get(from + i);
        }
        return new String(letters, StandardCharsets.ISO_8859_1);
    }
}
