// Everything that takes long runs here, one task after the other, so that the page stays responsive.

import { benchFile } from "./bench_file.js";
import { heatmapOver } from "./heatmap.js";
import { openModel } from "./model.js";
import { loadFile, loadFrame } from "./image.js";
import { selfCheck } from "./self_check.js";
import { Problem } from "./strict_json.js";
import { checkFinite, isAnomalous } from "./verdict.js";

let model;
let last = Promise.resolve();

const progress = (what, done, of) => postMessage({ progress: { what, done, of } });

const tasks = {
  async open(given) {
    if (!globalThis.crypto?.subtle) {
      throw new Problem("this page needs https, or localhost: only there may it check files and use the camera");
    }
    model = await openModel(given, (done, of) => progress("model", done, of));
    const { site, backend, threads, note, manifest } = model;
    const { precision, input, decision_threshold: decisionThreshold, provenance } = manifest;
    return { site, backend, threads, note, precision, size: input.size, decisionThreshold, teacher: provenance.teacher ?? null };
  },

  /** The verdict on a file or a camera's frame, and two bitmaps to show: the image and the heatmap over it. */
  async judge({ file, frame }) {
    const { runtime, manifest } = model;
    const began = performance.now();
    const { square, shown } = file ? await loadFile(file, manifest.input.size) : loadFrame(frame, manifest.input.size);
    const answer = await runtime.run(square);
    checkFinite(answer);
    const { map, score } = answer;
    const anomalous = isAnomalous(score, manifest.decision_threshold.value);
    const milliseconds = performance.now() - began;
    return { anomalous, score, milliseconds, shown, heat: heatmapOver(shown, map, manifest.decision_threshold) };
  },

  async check(given) {
    return benchFile(model, await selfCheck(model, given, progress));
  },

  /** Load what is left of the bundle, so that the service worker keeps it for when there is no network. */
  async save() {
    for (const file of model.manifest.files) if (file.path !== model.manifest.artifact) await model.read(file.path);
  },
};

onmessage = ({ data: { id, task, given } }) => {
  last = last.then(async () => {
    try {
      const answer = await tasks[task](given);
      postMessage({ id, answer }, answer?.shown ? [answer.shown, answer.heat] : []);
    } catch (error) {
      const problem = error instanceof Problem ? error.message : `something unforeseen went wrong: ${error}`;
      postMessage({ id, problem });
    }
  });
};
