// The self-check: parity with the trained model on the golden images, then latency.

import { readGolden } from "./golden.js";
import { latency, median } from "./percentiles.js";
import { loadFile } from "./image.js";
import { compareOne, isAnomalous, problems, total } from "./verdict.js";

const ROUNDS = 10, WARM_UP_QUERIES = 8, MAX_WARM_UP_ROUNDS = 25;
const MAX_IMAGES = 8; // golden images that the queries cycle through

/**
 * Check an opened model as stlm-bench does: warm-up until the medians settle, then ten rounds of at least `queries` and
 * `seconds` in total. A model that fails parity is not timed, unless `evenIfWrong`.
 */
export async function selfCheck(model, { queries = 128, seconds = 10, evenIfWrong = false }, progress) {
  const { manifest, read, runtime } = model;
  const size = manifest.input.size;
  const answers = [], images = [];
  let firstInferenceMs = null;
  for (const entry of manifest.golden) {
    progress("parity", answers.length, manifest.golden.length);
    const golden = await readGolden(entry, manifest, read);
    const began = performance.now();
    const output = await runtime.run(golden.tensor);
    firstInferenceMs ??= performance.now() - began;
    answers.push(compareOne(golden, output, size, manifest));
    if (images.length < MAX_IMAGES) images.push(golden);
  }
  const parity = total(answers);
  const wrong = problems(parity, manifest.precision);
  const result = { answers, parity, wrong, firstInferenceMs, timing: null };
  if (wrong.length && !evenIfWrong) return result;

  const graph = (image) => runtime.run(image.tensor);
  const endToEnd = async (image) => {
    const { score } = await runtime.run((await loadFile(image.file, size, false)).square);
    return isAnomalous(score, manifest.decision_threshold.value);
  };
  const round = async (query, count) => {
    const times = [];
    for (let number = -1; number < count; number++) {
      const image = images.at(number % images.length);
      const began = performance.now();
      await query(image);
      if (number >= 0) times.push(Math.round((performance.now() - began) * 1e4) / 1e4);
    }
    return times;
  };

  const medians = [];
  let steady = false;
  while (!steady && medians.length < MAX_WARM_UP_ROUNDS) {
    progress("warm-up", medians.length, MAX_WARM_UP_ROUNDS);
    medians.push(median(await round(graph, WARM_UP_QUERIES)));
    const last = medians.slice(-3);
    steady = last.length === 3 && Math.max(...last) <= 1.05 * Math.min(...last);
  }
  const count = Math.ceil(Math.max(queries, (seconds * 1e3) / Math.max(medians.at(-1), 1e-3)) / ROUNDS);
  const graphs = [], endToEnds = [];
  for (let turn = 0; turn < ROUNDS; turn++) {
    progress("latency", turn, ROUNDS);
    graphs.push(await round(graph, count));
    endToEnds.push(await round(endToEnd, Math.ceil(count / 8)));
  }
  const all = graphs.flat();
  result.timing = {
    warmup: medians.length * WARM_UP_QUERIES,
    steady,
    queries: all.length,
    seconds: Math.round(all.reduce((sum, value) => sum + value, 0)) / 1e3,
    latency: latency(all),
    endToEnd: latency(endToEnds.flat()),
    rounds: graphs.map((each) => Math.round(median(each) * 1e4) / 1e4),
  };
  return result;
}
