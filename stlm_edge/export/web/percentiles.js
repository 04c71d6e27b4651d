// Figures from latencies, as stlm-bench has them.

/** The nearest-rank percentile: the smallest value that `share` of all are not above. */
export function percentile(values, share) {
  return Float64Array.from(values).sort()[Math.max(0, Math.ceil(share * values.length) - 1)];
}

/**
 * A percentile that holds with 99% confidence however few queries there were, as MLPerf's LoadGen reports it: so many of
 * n may be slower as chance would show in a hundredth of all runs at most. Null where n is too small even for none.
 */
export function earlyStopping(values, share = 0.9) {
  const n = values.length;
  let slower = -1, seen = 0, logWays = 0;
  for (let k = 0; k < n; k++) {
    if (k) logWays += Math.log((n - k + 1) / k);
    seen += Math.exp(logWays + k * Math.log(1 - share) + (n - k) * Math.log(share));
    if (seen > 0.01) break;
    slower = k;
  }
  return slower < 0 ? null : Float64Array.from(values).sort()[n - slower - 1];
}

export function median(values) {
  const sorted = Float64Array.from(values).sort();
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

/** Percentiles in the form that bench.json has them. */
export function latency(values) {
  return {
    p50: percentile(values, 0.5),
    p90: percentile(values, 0.9),
    p99: percentile(values, 0.99),
    p90_early_stopping: earlyStopping(values),
  };
}
