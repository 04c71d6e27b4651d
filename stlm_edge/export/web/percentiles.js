// Percentiles of latencies, as in stlm-bench.

/** Return the nearest-rank percentile: the smallest value that at least `share` of all values do not exceed. */
export function percentile(values, share) {
  return Float64Array.from(values).sort()[Math.max(0, Math.ceil(share * values.length) - 1)];
}

/**
 * Return an upper bound of a percentile with 99% confidence, for any number n of queries (early stopping, MLPerf's
 * LoadGen). Null where n is too small.
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

/** Return the median; for an even number of values the mean of the two in the middle. */
export function median(values) {
  const sorted = Float64Array.from(values).sort();
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

/** Return percentiles in the format of bench.json. */
export function latency(values) {
  return {
    p50: percentile(values, 0.5),
    p90: percentile(values, 0.9),
    p99: percentile(values, 0.99),
    p90_early_stopping: earlyStopping(values),
  };
}
