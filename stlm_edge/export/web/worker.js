// Runs the long tasks one after the other, so that the page stays responsive.

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
      throw new Problem("this page must be served by https or from localhost, where browsers allow checksums and the camera");
    }
    model = await openModel(given, (done, of) => progress("model", done, of));
    const { site, backend, threads, note, manifest } = model;
    const { precision, input, decision_threshold: decisionThreshold, provenance } = manifest;
    return { site, backend, threads, note, precision, size: input.size, decisionThreshold, teacher: provenance.teacher ?? null };
  },

  /** Return the verdict on a file or a camera's frame, and two bitmaps: the image and the heatmap to draw over it. */
  async judge({ file, frame }) {
    const { runtime, manifest } = model;
    const began = performance.now();
    const { square, shown } = file ? await loadFile(file, manifest.input.size) : loadFrame(frame, manifest.input.size);
    const output = await runtime.run(square);
    checkFinite(output);
    const { map, score } = output;
    const anomalous = isAnomalous(score, manifest.decision_threshold.value);
    const milliseconds = performance.now() - began;
    return { anomalous, score, milliseconds, shown, heat: heatmapOver(shown, map, manifest.decision_threshold) };
  },

  async check(given) {
    return benchFile(model, await selfCheck(model, given, progress));
  },

  /** Load the rest of the bundle, so that the service worker caches it for offline use. */
  async save() {
    for (const file of model.manifest.files) if (file.path !== model.manifest.artifact) await model.read(file.path);
  },
};

onmessage = ({ data: { id, task, given } }) => {
  last = last.then(async () => {
    try {
      const result = await tasks[task](given);
      postMessage({ id, result }, result?.shown ? [result.shown, result.heat] : []);
    } catch (error) {
      const problem = error instanceof Problem ? error.message : `unexpected error: ${error}`;
      postMessage({ id, problem });
    }
  });
};
