package org.stlm_edge.core;

import java.util.Arrays;

/** A model's verdict on one image: anomalous or normal, score and map. */
public final class Verdict {
    private static final int HIGHEST = 100;

    public final boolean anomalous;
    public final double score;
    public final double threshold;
    /** Anomaly map S×S, row by row, of the image resized to a square: its aspect ratio is not the image's. */
    public final float[] map;

    private Verdict(float[] map, double score, double threshold) {
        this.map = map;
        this.score = score;
        this.threshold = threshold;
        anomalous = isAnomalous(score, threshold);
    }

    /** Returns the verdict for an anomaly map. Throws ArithmeticException if it is not finite. */
    public static Verdict of(float[] map, double threshold) {
        if (!isFinite(map)) {
            throw new ArithmeticException("the anomaly map is not finite (NaN or infinite)");
        }
        return new Verdict(map, scoreOf(map), threshold);
    }

    /** Returns whether the score is above the threshold; at the threshold an image is normal. */
    public static boolean isAnomalous(double score, double threshold) {
        return score > threshold;
    }

    /** Returns the mean of a map's 100 highest values, or of all where it has fewer. */
    public static double scoreOf(float[] map) {
        int count = Math.min(HIGHEST, map.length);
        float[] highest = new float[count]; // ascending; a new value replaces the lowest
        System.arraycopy(map, 0, highest, 0, count);
        Arrays.sort(highest);
        for (int i = count; i < map.length; i++) {
            if (map[i] > highest[0]) {
                int place = 1;
                while (place < count && highest[place] < map[i]) {
                    highest[place - 1] = highest[place];
                    place++;
                }
                highest[place - 1] = map[i];
            }
        }
        double sum = 0;
        for (float value : highest) {
            sum += value;
        }
        return sum / count;
    }

    static boolean isFinite(float[] values) {
        for (float value : values) {
            if (Float.isNaN(value) || Float.isInfinite(value)) {
                return false;
            }
        }
        return true;
    }
}
