// Shows a self-check: the parity table, the percentiles, and bench.json to download.

const $ = (id) => document.getElementById(id);
const VERDICTS = { same: "✓ same", flip: "flip, within tolerance", failure: "✗ FAILED" };

/** Show the only row of `bench`, the content of bench.json. */
export function showCheck(bench) {
  const [row] = bench.rows;
  $("headline").textContent = bench.headline;
  $("headline").className = row.passed ? "" : "callout";
  $("rows").replaceChildren(
    ...row.golden.map((answer) =>
      line(
        [
          answer.name,
          VERDICTS[answer.verdict],
          answer.score.toFixed(5),
          answer.expected_score.toFixed(5),
          small(answer.max_abs_diff),
          small(answer.mean_abs_diff),
          answer.cosine.toFixed(6),
          levels(answer.resize_max_diff),
        ],
        answer.verdict,
      ),
    ),
    line([
      "all",
      `${row.parity.images - row.parity.verdict_flips} of ${row.parity.images} same`,
      `differs by ≤ ${small(row.parity.score_max_diff)}`,
      "",
      small(row.parity.max_abs_diff),
      small(row.parity.mean_abs_diff),
      row.parity.cosine.toFixed(6),
      levels(row.parity.resize_max_diff),
    ]),
  );
  const timed = { "Graph alone": row.latency_ms, "End to end: decode, resize, run, decide": row.end_to_end_ms };
  $("latencies").replaceChildren(
    ...Object.entries(timed).map(([name, times]) =>
      line([name, ...["p50", "p90", "p99"].map((key) => (times ? times[key].toFixed(1) : "not measured"))]),
    ),
  );
  const unsteady = row.steady ? "" : ", which did not become steady";
  $("how").textContent = row.queries
    ? `${row.queries} queries in ${row.seconds.toFixed(0)} s after ${row.warmup} for warm-up${unsteady}, one image at a time.`
    : "Not timed, since the results are wrong.";
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([`${JSON.stringify(bench, null, 2)}\n`], { type: "application/json" }));
  $("checked-result").hidden = false;
}

function line(cells, verdict = "") {
  const row = document.createElement("tr");
  for (const [index, text] of cells.entries()) {
    const cell = row.insertCell();
    cell.textContent = text;
    if (index === 1 && verdict) cell.className = verdict;
  }
  return row;
}

function small(value) {
  return value === null ? "not finite" : value.toExponential(1);
}

function levels(value) {
  return `${value} level${value === 1 ? "" : "s"}`;
}
