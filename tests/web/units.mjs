// Runs the page's modules outside a browser: tasks as JSON on standard input, results on standard output.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const page = (name) => import(pathToFileURL(join(process.argv[2], name)));
const { openBundle, readManifest } = await page("bundle.js");
const { layer } = await page("heatmap.js");
const { earlyStopping, percentile } = await page("percentiles.js");
const { readHeader } = await page("image_header.js");
const { Resizer } = await page("resize.js");
const { Problem } = await page("strict_json.js");
const { compareOne, problems, scoreOfMap, total } = await page("verdict.js");

const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const floats = (text) => new Float32Array(bytes(text).buffer);
const base64 = (array) => Buffer.from(array.buffer).toString("base64");

const tasks = {
  resize({ width, height, size, rgba }) {
    const resizer = new Resizer(width, height, size);
    const pixels = bytes(rgba);
    for (let y = 0; y < height; y++) resizer.row(pixels.subarray(y * width * 4, (y + 1) * width * 4));
    return base64(resizer.square());
  },
  score: ({ map }) => scoreOfMap(floats(map)),
  percentiles: ({ values }) => [...[0.5, 0.9, 0.99].map((share) => percentile(values, share)), earlyStopping(values)],
  layer: ({ map, side, decision_threshold: decisionThreshold }) => base64(layer(floats(map), side, decisionThreshold, side, side)),
  manifest: ({ text, schema }) => readManifest(text, schema).format_version,
  // In a browser that denies a page access to its caches.
  async opened({ text, schema }) {
    globalThis.fetch = async () => new Response(text);
    globalThis.caches = { keys: () => Promise.reject(new DOMException("refused", "SecurityError")) };
    return (await openBundle("http://localhost/fp32/", schema)).manifest.format_version;
  },
  header({ file }) {
    const { width, height, orientation } = readHeader(bytes(file));
    return { width, height, orientation };
  },
  parity({ golden, answers, manifest }) {
    const rows = answers.map((answer, index) => {
      const expected = { entry: golden[index].entry, map: floats(golden[index].map), resizeDifference: 0 };
      return compareOne(expected, { map: floats(answer.map), score: answer.score ?? NaN }, manifest.side, manifest);
    });
    return { rows, total: total(rows), problems: problems(total(rows), manifest.precision) };
  },
};

const answers = [];
for (const { task, ...given } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    answers.push({ answer: await tasks[task](given) });
  } catch (error) {
    answers.push(error instanceof Problem ? { problem: error.message } : { unforeseen: String(error?.stack ?? error) });
  }
}
process.stdout.write(JSON.stringify(answers));
