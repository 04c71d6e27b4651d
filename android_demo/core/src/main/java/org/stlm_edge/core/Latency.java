package org.stlm_edge.core;

import java.util.Arrays;

/** Percentiles of milliseconds per image. */
public final class Latency {
    private static final double CONFIDENCE = 0.99;

    public final double p50;
    public final double p90;
    public final double p99;
    /** p90 with 99% confidence (MLPerf's early stopping); null if the queries are too few. */
    public final Double p90EarlyStopping;

    public Latency(double[] milliseconds) {
        p50 = percentile(milliseconds, 0.5);
        p90 = percentile(milliseconds, 0.9);
        p99 = percentile(milliseconds, 0.99);
        p90EarlyStopping = earlyStopping(milliseconds, 0.9);
    }

    /** Returns the nearest-rank percentile: the smallest value that {@code share} of all values do not exceed. */
    public static double percentile(double[] values, double share) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[Math.max(0, (int) Math.ceil(share * sorted.length) - 1)];
    }

    /**
     * Returns how many of n queries may be slower, so that with 99% confidence no more than 1 − {@code share} of all
     * queries are slower.
     */
    private static Double earlyStopping(double[] values, double share) {
        int n = values.length;
        int slower = -1;
        double ways = 0; // logarithm of the binomial coefficient n over k
        double seen = 0;
        for (int k = 0; k < n; k++) {
            ways += k == 0 ? 0 : Math.log((double) (n - k + 1) / k);
            seen += Math.exp(ways + k * Math.log(1 - share) + (n - k) * Math.log(share));
            if (seen > 1 - CONFIDENCE) {
                break;
            }
            slower = k;
        }
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return slower < 0 ? null : Double.valueOf(sorted[n - slower - 1]);
    }
}
