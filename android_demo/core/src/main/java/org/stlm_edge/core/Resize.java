package org.stlm_edge.core;

/**
 * Resize as in training and on every device: bilinear, antialiased, aspect ratio not kept, as in Pillow.
 *
 * <p>Each target pixel is a mean of source pixels weighted by a triangle whose half width is the scale (at least 1),
 * first along rows and then along columns, in fixed point with rounding to 8 bits after each. (Pillow 13 chooses the
 * order by the image's shape, so that it may differ by 1 from this and from older releases.)
 */
public final class Resize {
    private static final int PRECISION = 22;

    private Resize() {}

    /** Returns RGB of {@code size}×{@code size} pixels, row by row, three bytes each. */
    public static byte[] toSquare(Image image, int size) {
        int width = image.width();
        int height = image.height();
        Taps across = new Taps(width, size);
        if ((long) height * size * 3 > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("an image of " + height + " rows is too large");
        }
        byte[] narrow = new byte[height * size * 3];
        int[] row = new int[width];
        for (int y = 0; y < height; y++) {
            image.row(y, row);
            for (int x = 0; x < size; x++) {
                int red = 1 << (PRECISION - 1);
                int green = red;
                int blue = red;
                for (int k = 0; k < across.count[x]; k++) {
                    int pixel = row[across.first[x] + k];
                    int weight = across.weights[x][k];
                    red += weight * ((pixel >> 16) & 255);
                    green += weight * ((pixel >> 8) & 255);
                    blue += weight * (pixel & 255);
                }
                int at = (y * size + x) * 3;
                narrow[at] = (byte) (red >> PRECISION);
                narrow[at + 1] = (byte) (green >> PRECISION);
                narrow[at + 2] = (byte) (blue >> PRECISION);
            }
        }
        return columns(narrow, height, size);
    }

    private static byte[] columns(byte[] narrow, int height, int size) {
        Taps down = new Taps(height, size);
        int stride = size * 3;
        byte[] square = new byte[size * stride];
        for (int y = 0; y < size; y++) {
            for (int x = 0; x < stride; x++) {
                int sum = 1 << (PRECISION - 1);
                for (int k = 0; k < down.count[y]; k++) {
                    sum += down.weights[y][k] * (narrow[(down.first[y] + k) * stride + x] & 255);
                }
                square[y * stride + x] = (byte) (sum >> PRECISION);
            }
        }
        return square;
    }

    /** Source pixels of each target pixel: the first, their number and their weights. */
    private static final class Taps {
        final int[] first;
        final int[] count;
        final int[][] weights;

        Taps(int from, int to) {
            double scale = (double) from / to;
            double reach = Math.max(scale, 1);
            first = new int[to];
            count = new int[to];
            weights = new int[to][];
            for (int i = 0; i < to; i++) {
                double centre = (i + 0.5) * scale;
                first[i] = Math.max((int) (centre - reach + 0.5), 0);
                count[i] = Math.min((int) (centre + reach + 0.5), from) - first[i];
                double[] shares = new double[count[i]];
                double total = 0;
                for (int k = 0; k < count[i]; k++) {
                    shares[k] = Math.max(0, 1 - Math.abs((first[i] + k - centre + 0.5) / reach));
                    total += shares[k];
                }
                weights[i] = new int[count[i]];
                for (int k = 0; k < count[i]; k++) {
                    weights[i][k] = (int) (0.5 + shares[k] / total * (1 << PRECISION));
                }
            }
        }
    }
}
