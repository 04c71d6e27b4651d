package org.stlm_edge.core;

/** Renders anomaly maps with a dark-to-bright colour scale that has the threshold in its middle. */
public final class Heatmap {
    private static final int[][] ANCHORS = {
        {4, 5, 18}, {48, 16, 88}, {104, 26, 112}, {160, 42, 98}, {212, 72, 66}, {244, 120, 30}, {252, 178, 36},
        {252, 255, 164}
    };
    private static final int[] COLOURS = colours();

    private Heatmap() {}

    /**
     * Returns an ARGB overlay. Normal surface is transparent; the colour fades in up to the threshold, and has the full
     * {@code opacity}, 0 to 1, above it.
     */
    public static int[] layer(float[] map, Manifest.DecisionThreshold decisionThreshold, double opacity) {
        float low = (float) decisionThreshold.mapLow;
        float span = (float) Math.max(decisionThreshold.mapHigh - decisionThreshold.mapLow, 1e-9);
        int[] argb = new int[map.length];
        for (int i = 0; i < map.length; i++) {
            float share = Math.min(Math.max((map[i] - low) / span, 0f), 1f);
            int level = (int) Math.rint(share * 255f);
            double fade = Math.min(Math.max((level / 255.0 - 0.25) / 0.25, 0), 1);
            argb[i] = (int) Math.rint(255 * opacity * fade) << 24 | COLOURS[level];
        }
        return argb;
    }

    private static int[] colours() {
        int[] colours = new int[256];
        for (int level = 0; level < 256; level++) {
            double place = level / 255.0 * (ANCHORS.length - 1);
            int below = Math.min((int) place, ANCHORS.length - 2);
            for (int channel = 0; channel < 3; channel++) {
                int low = ANCHORS[below][channel];
                int high = ANCHORS[below + 1][channel];
                colours[level] = colours[level] << 8 | (int) Math.rint(low + (place - below) * (high - low));
            }
        }
        return colours;
    }
}
