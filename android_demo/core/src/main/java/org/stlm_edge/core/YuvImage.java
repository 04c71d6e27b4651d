package org.stlm_edge.core;

/** Camera frame in YUV 4:2:0 (BT.601, full range, as in JPEG): luma for each pixel, chroma for each 2×2. */
public final class YuvImage implements Image {
    private final int width;
    private final int height;
    private final byte[] y;
    private final int yStride;
    private final byte[] u;
    private final byte[] v;
    private final int colourStride;
    private final int colourStep;

    /** Makes an image; strides are between rows, {@code colourStep} between chroma values, all in bytes. */
    public YuvImage(
            int width, int height, byte[] y, int yStride, byte[] u, byte[] v, int colourStride, int colourStep) {
        this.width = width;
        this.height = height;
        this.y = y;
        this.yStride = yStride;
        this.u = u;
        this.v = v;
        this.colourStride = colourStride;
        this.colourStep = colourStep;
    }

    @Override
    public int width() {
        return width;
    }

    @Override
    public int height() {
        return height;
    }

    @Override
    public void row(int row, int[] argb) {
        for (int x = 0; x < width; x++) {
            int colour = row / 2 * colourStride + x / 2 * colourStep;
            float bright = y[row * yStride + x] & 255;
            float blueness = (u[colour] & 255) - 128;
            float redness = (v[colour] & 255) - 128;
            int red = clip(bright + 1.402f * redness);
            int green = clip(bright - 0.344136f * blueness - 0.714136f * redness);
            int blue = clip(bright + 1.772f * blueness);
            argb[x] = 0xff000000 | red << 16 | green << 8 | blue;
        }
    }

    private static int clip(float value) {
        return Math.max(0, Math.min(255, (int) (value + 0.5f)));
    }
}
