package org.stlm_edge.core;

/**
 * Decoded image, read row by row so that a large one needs no second copy. On Android use
 * {@code bitmap.getPixels(argb, 0, width, 0, y, width, 1)}, on a JVM {@code BufferedImage.getRGB}. Alpha is ignored.
 */
public interface Image {
    int width();

    int height();

    /** Fills {@code argb}, which holds at least {@link #width} values, with row {@code y}. */
    void row(int y, int[] argb);
}
