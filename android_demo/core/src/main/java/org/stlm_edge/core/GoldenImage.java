package org.stlm_edge.core;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Golden image of a bundle, verified: the network's input, and the trained model's score and map. */
public final class GoldenImage {
    private static final int MAX_PIXELS = 1_000_000;
    private static final byte[] PNG = {
        (byte) 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R'
    };

    /** Decodes a PNG whose size has been checked. */
    public interface Decoder {
        Image decode(byte[] png) throws IOException;
    }

    public final Manifest.Golden entry;
    /** Network input, RGB, S×S×3. */
    public final byte[] tensor;
    /** The trained model's map at [offset::stride] on both axes. */
    public final float[] map;
    /** Largest difference, in grey levels, between this device's decoding and resizing and {@link #tensor}. */
    public final int resizeMaxDiff;

    private GoldenImage(Manifest.Golden entry, byte[] tensor, float[] map, int resizeMaxDiff) {
        this.entry = entry;
        this.tensor = tensor;
        this.map = map;
        this.resizeMaxDiff = resizeMaxDiff;
    }

    /** Reads one of {@code bundle.manifest.golden}. */
    public static GoldenImage read(Bundle bundle, Manifest.Golden entry, Decoder decoder) throws IOException {
        int size = bundle.manifest.size;
        byte[] tensor = bundle.read(entry.tensor);
        if (entry.tensorIsPng) {
            Image image = decode(tensor, entry.tensor, size * size, decoder);
            if (image.width() != size || image.height() != size) {
                throw new BundleException(entry.tensor + ": not " + size + "×" + size + "; export the bundle again");
            }
            tensor = Resize.toSquare(image, size);
        }
        ByteBuffer content = ByteBuffer.wrap(bundle.read(entry.map)).order(ByteOrder.LITTLE_ENDIAN);
        float[] map = new float[entry.mapSide * entry.mapSide];
        content.asFloatBuffer().get(map);
        Image image = decode(bundle.read(entry.image), entry.image, MAX_PIXELS, decoder);
        byte[] resized = Resize.toSquare(image, size);
        int largest = 0;
        for (int i = 0; i < tensor.length; i++) {
            largest = Math.max(largest, Math.abs((tensor[i] & 255) - (resized[i] & 255)));
        }
        return new GoldenImage(entry, tensor, map, largest);
    }

    private static Image decode(byte[] png, String path, int most, Decoder decoder) throws IOException {
        boolean intact = png.length > 24;
        for (int i = 0; i < PNG.length && intact; i++) {
            intact = png[i] == PNG[i];
        }
        if (!intact) {
            throw new BundleException(path + ": not a PNG; export the bundle again");
        }
        ByteBuffer header = ByteBuffer.wrap(png);
        int width = header.getInt(16);
        int height = header.getInt(20);
        if (width < 1 || height < 1 || (long) width * height > most) {
            throw new BundleException(path + ": " + width + "×" + height + ", more than " + most + " pixels");
        }
        Image image = decoder.decode(png);
        if (image == null || image.width() != width || image.height() != height) {
            throw new BundleException(path + ": not a readable PNG; export the bundle again");
        }
        return image;
    }
}
