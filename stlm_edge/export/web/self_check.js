// Parity on the golden images, then latency: does this browser say what the trained model said, and how fast?

import { readGolden } from "./golden.js";
import { latency, median } from "./percentiles.js";
import { loadFile } from "./image.js";
import { compareOne, isAnomalous, problems, total } from "./verdict.js";

const ROUNDS = 10, WARM_UP_QUERIES = 8, MOST_WARM_UP_ROUNDS = 25;
const MAX_IMAGES = 8; // golden images that the queries take in turn

/**
 * Runs it on an opened model as stlm-bench does: warm-up until the medians settle, then ten rounds of at least `queries`
 * and `seconds` in all. A model that fails parity is not timed, unless `evenIfWrong`.
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
    const answer = await runtime.run(golden.tensor);
    firstInferenceMs ??= performance.now() - began;
    answers.push(compareOne(golden, answer, size, manifest));
    if (images.length < MAX_IMAGES) images.push(golden);
  }
  const parity = total(answers);
  const wrong = problems(parity, manifest.precision);
  const found = { answers, parity, wrong, firstInferenceMs, timing: null };
  if (wrong.length && !evenIfWrong) return found;

  const graph = (image) => runtime.run(image.tensor);
  const whole = async (image) => {
    const { score } = await runtime.run((await loadFile(image.file, size, false)).square);
    return isAnomalous(score, manifest.decision_threshold.value);
  };
  const round = async (query, count) => {
    const taken = [];
    for (let number = -1; number < count; number++) {
      const image = images.at(number % images.length);
      const began = performance.now();
      await query(image);
      if (number >= 0) taken.push(Math.round((performance.now() - began) * 1e4) / 1e4);
    }
    return taken;
  };

  const medians = [];
  let steady = false;
  while (!steady && medians.length < MOST_WARM_UP_ROUNDS) {
    progress("warm-up", medians.length, MOST_WARM_UP_ROUNDS);
    medians.push(median(await round(graph, WARM_UP_QUERIES)));
    const last = medians.slice(-3);
    steady = last.length === 3 && Math.max(...last) <= 1.05 * Math.min(...last);
  }
  const count = Math.ceil(Math.max(queries, (seconds * 1e3) / Math.max(medians.at(-1), 1e-3)) / ROUNDS);
  const graphs = [], wholes = [];
  for (let turn = 0; turn < ROUNDS; turn++) {
    progress("latency", turn, ROUNDS);
    graphs.push(await round(graph, count));
    wholes.push(await round(whole, Math.ceil(count / 8)));
  }
  const all = graphs.flat();
  found.timing = {
    warmup: medians.length * WARM_UP_QUERIES,
    steady,
    queries: all.length,
    seconds: Math.round(all.reduce((sum, value) => sum + value, 0)) / 1e3,
    latency: latency(all),
    endToEnd: latency(wholes.flat()),
    rounds: graphs.map((each) => Math.round(median(each) * 1e4) / 1e4),
  };
  return found;
}
