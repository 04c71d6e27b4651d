package org.stlm_edge.core;

import java.util.Arrays;

/** Nearest-rank percentiles over all queries, milliseconds. */
public final class Latency {
    public final double p50;
    public final double p90;
    public final double p99;

    public Latency(double[] milliseconds) {
        p50 = percentile(milliseconds, 0.5);
        p90 = percentile(milliseconds, 0.9);
        p99 = percentile(milliseconds, 0.99);
    }

    /** The smallest value that {@code share} of all are not above. */
    public static double percentile(double[] values, double share) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[Math.max(0, (int) Math.ceil(share * sorted.length) - 1)];
    }
}
