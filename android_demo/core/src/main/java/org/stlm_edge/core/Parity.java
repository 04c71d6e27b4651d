package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/**
 * Comparison of this device's verdicts and maps with the trained model's.
 *
 * <p>A verdict flips when this device's differs from the trained model's. A flip is a failure when the trained model's
 * score was farther than δ from the threshold (the manifest's {@code verdict_delta}). Values not finite always fail.
 */
public final class Parity {
    private static final double FP32_MAP_LIMIT = 1e-4; // largest map difference allowed for this precision
    private static final double FP16_MAP_LIMIT = 5e-3;
    private static final int RESIZE_LIMIT = 1; // grey levels: rounding

    /** Result of one golden image. */
    public static final class Row {
        public final String name;
        public final boolean anomalous;
        public final double maxAbsDiff;
        public final double meanAbsDiff;
        public final double cosine;
        public final double score;
        public final double expectedScore;
        /** One of same, flip, failure. */
        public final String verdict;

        public final int resizeMaxDiff;

        Row(GoldenImage golden, float[] map, int size, double threshold, double delta) {
            name = golden.entry.name;
            anomalous = golden.entry.anomalous;
            expectedScore = golden.entry.score;
            resizeMaxDiff = golden.resizeMaxDiff;
            boolean finite = map.length == size * size && Verdict.isFinite(map) && Verdict.isFinite(golden.map);
            score = finite ? Verdict.scoreOf(map) : Double.NaN;
            boolean flipped = !finite
                    || Verdict.isAnomalous(score, threshold) != Verdict.isAnomalous(expectedScore, threshold);
            boolean failed = !finite || (flipped && Math.abs(expectedScore - threshold) > delta);
            verdict = failed ? "failure" : flipped ? "flip" : "same";
            double largest = 0;
            double sum = 0;
            double ab = 0;
            double aa = 0;
            double bb = 0;
            int side = golden.entry.mapSide;
            for (int i = 0; finite && i < golden.map.length; i++) {
                int y = golden.entry.offset + i / side * golden.entry.stride;
                int x = golden.entry.offset + i % side * golden.entry.stride;
                double a = golden.map[i];
                double b = map[y * size + x];
                largest = Math.max(largest, Math.abs(a - b));
                sum += Math.abs(a - b);
                ab += a * b;
                aa += a * a;
                bb += b * b;
            }
            double product = Math.sqrt(aa * bb);
            maxAbsDiff = finite ? largest : Double.POSITIVE_INFINITY;
            meanAbsDiff = finite ? sum / golden.map.length : Double.POSITIVE_INFINITY;
            cosine = !finite ? 0 : product > 0 ? ab / product : largest == 0 ? 1 : 0;
        }
    }

    public final List<Row> rows = new ArrayList<>();
    private final Manifest manifest;

    public Parity(Manifest manifest) {
        this.manifest = manifest;
    }

    /** Adds this device's map of a golden image to the comparison. */
    public Row add(GoldenImage golden, float[] map) {
        Row row = new Row(golden, map, manifest.size, manifest.decisionThreshold.value, manifest.verdictDelta);
        rows.add(row);
        return row;
    }

    public double maxAbsDiff() {
        double most = 0;
        for (Row row : rows) {
            most = Math.max(most, row.maxAbsDiff);
        }
        return most;
    }

    public double meanAbsDiff() {
        double sum = 0;
        for (Row row : rows) {
            sum += row.meanAbsDiff;
        }
        return sum / rows.size();
    }

    public double cosine() {
        double sum = 0;
        for (Row row : rows) {
            sum += row.cosine;
        }
        return sum / rows.size();
    }

    public double scoreMaxDiff() {
        double most = 0;
        for (Row row : rows) {
            most = Math.max(most, Math.abs(row.score - row.expectedScore));
        }
        return most;
    }

    public int resizeMaxDiff() {
        int most = 0;
        for (Row row : rows) {
            most = Math.max(most, row.resizeMaxDiff);
        }
        return most;
    }

    /** Returns the number of verdicts that differ, failures included. */
    public int flips() {
        return rows.size() - count("same");
    }

    public int failures() {
        return count("failure");
    }

    /** Returns the reasons why this device does not pass; empty if it does. */
    public String problems() {
        String found = "";
        if (Double.isInfinite(maxAbsDiff())) {
            found += "; the map or score is not finite or has another shape";
        } else if (maxAbsDiff() > mapLimit(manifest.precision)) {
            found += String.format(Locale.ROOT, "; %s map differs by %.2g, at most %.0e is allowed",
                    manifest.precision, maxAbsDiff(), mapLimit(manifest.precision));
        }
        if (failures() > 0) {
            found += "; " + failures() + " of " + rows.size() + " verdicts fail";
        }
        if (resizeMaxDiff() > RESIZE_LIMIT) {
            found += "; decoding and resizing differ by " + resizeMaxDiff() + " grey levels, at most " + RESIZE_LIMIT
                    + " is allowed";
        }
        return found.isEmpty() ? found : found.substring(2);
    }

    private static double mapLimit(String precision) {
        switch (precision) {
            case "fp32":
                return FP32_MAP_LIMIT;
            case "fp16":
                return FP16_MAP_LIMIT;
            default:
                return Double.POSITIVE_INFINITY;
        }
    }

    private int count(String verdict) {
        int count = 0;
        for (Row row : rows) {
            count += row.verdict.equals(verdict) ? 1 : 0;
        }
        return count;
    }
}
