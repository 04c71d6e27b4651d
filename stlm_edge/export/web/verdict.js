// Scores, verdicts and parity with the trained model, by the same rules as on every device.

import { Problem } from "./strict_json.js";

const MAP_LIMITS = { fp32: 1e-4, fp16: 5e-3 };
const RESIZE_LIMIT = 1; // grey levels: rounding

/** Return the mean of the 100 highest values of a map, or of all if it has fewer. */
export function scoreOfMap(map) {
  const highest = new Float32Array(map).sort().subarray(-100); // numeric, NaN last
  return highest.reduce((sum, value) => sum + value, 0) / highest.length;
}

/** Return whether a score is above the threshold; at the threshold an image is normal. */
export function isAnomalous(score, threshold) {
  return score > threshold;
}

/**
 * Compare an output (map S×S, score) with the trained model's (`golden`: entry of the manifest, sampled map) for one image.
 * Differences that are not finite are null, and fail the verdict.
 */
export function compareOne(golden, output, side, manifest) {
  const { entry, map } = golden;
  const { value: threshold } = manifest.decision_threshold;
  const { stride, offset, shape } = entry.map;
  let largest = 0, sum = 0, product = 0, ours = 0, theirs = 0;
  for (let y = 0, i = 0; y < shape[0]; y++) {
    for (let x = 0; x < shape[1]; x++, i++) {
      const value = output.map[(offset + y * stride) * side + offset + x * stride];
      const difference = Math.abs(value - map[i]);
      largest = Math.max(largest, difference);
      sum += difference;
      product += value * map[i];
      ours += value * value;
      theirs += map[i] * map[i];
    }
  }
  const finite = output.map.every(Number.isFinite) && Number.isFinite(output.score) && Number.isFinite(largest);
  const norm = Math.sqrt(ours * theirs);
  const flipped = !finite || isAnomalous(output.score, threshold) !== isAnomalous(entry.score, threshold);
  const failed = !finite || (flipped && Math.abs(entry.score - threshold) > manifest.verdict_delta);
  return {
    name: entry.name,
    anomalous: entry.anomalous,
    max_abs_diff: finite ? largest : null,
    mean_abs_diff: finite ? sum / map.length : null,
    cosine: !finite ? 0 : norm ? product / norm : Number(largest === 0),
    score: Number.isFinite(output.score) ? output.score : 0,
    expected_score: entry.score,
    verdict: failed ? "failure" : flipped ? "flip" : "same",
    resize_max_diff: golden.resizeDifference,
  };
}

/** Summarise all golden images: maxima, means, counts. */
export function total(answers) {
  const of = (key) => answers.map((answer) => answer[key]);
  const finite = !of("max_abs_diff").includes(null);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return {
    max_abs_diff: finite ? Math.max(...of("max_abs_diff")) : null,
    mean_abs_diff: finite ? mean(of("mean_abs_diff")) : null,
    cosine: mean(of("cosine")),
    verdict_flips: of("verdict").filter((verdict) => verdict !== "same").length,
    verdict_failures: of("verdict").filter((verdict) => verdict === "failure").length,
    score_max_diff: Math.max(...answers.map((answer) => Math.abs(answer.score - answer.expected_score))),
    resize_max_diff: Math.max(...of("resize_max_diff")),
    images: answers.length,
  };
}

/** Return the reasons why a model of this precision does not pass, in words. */
export function problems(parity, precision) {
  const reasons = [];
  const limit = MAP_LIMITS[precision] ?? Infinity;
  if (parity.max_abs_diff === null) reasons.push("the map or score is not finite");
  else if (parity.max_abs_diff > limit) {
    reasons.push(`${precision} map differs by ${parity.max_abs_diff.toPrecision(2)}, at most ${limit} is allowed`);
  }
  if (parity.verdict_failures) reasons.push(`${parity.verdict_failures} of ${parity.images} verdicts fail`);
  if (parity.resize_max_diff > RESIZE_LIMIT) {
    reasons.push(
      `decoding and resizing differ by ${parity.resize_max_diff} grey levels, at most ${RESIZE_LIMIT} is allowed`,
    );
  }
  return reasons;
}

/** Throw a Problem if an output is not finite, which gives no verdict. */
export function checkFinite(output) {
  if (!output.map.every(Number.isFinite) || !Number.isFinite(output.score)) {
    throw new Problem("the model's output is not finite; run the self-check, and export the bundle again if it fails");
  }
}
