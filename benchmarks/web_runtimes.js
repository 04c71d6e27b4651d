// The page's end of web_runtimes.py: one model by both runtimes, in turns.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { openBundle } from "./bundle.js";
import { readGolden } from "./golden.js";
import { fetchBinary, openRuntime } from "./runtime.js";
import { compareOne, scoreOfMap, total } from "./verdict.js";

const json = async (name) => (await fetch(name)).json();

async function openLiteRt(file, size, threads) {
  await loadLiteRt("./litert/", { threads: threads > 1 });
  const model = await loadAndCompile(file, { accelerator: "wasm", cpuOptions: { numThreads: threads } });
  const run = async (square) => {
    const input = new Tensor(new Float32Array(square), [1, size, size, 3]);
    const [answer] = await model.run([input]);
    const map = new Float32Array(await answer.data());
    input.delete();
    answer.delete();
    return { map, score: scoreOfMap(map) };
  };
  return { run };
}

async function measure({ threads, rounds, queries }) {
  const site = await json("site.json");
  const { manifest, read } = await openBundle(new URL("onnx/", location), await json("manifest.schema.json"));
  const size = manifest.input.size;
  const opened = {};
  const open = async (name, make) => {
    const began = performance.now();
    const runtime = await make();
    opened[name] = { runtime, load_ms: performance.now() - began, rows: [], rounds_ms: [] };
  };
  await open("onnxruntime-web", async () =>
    openRuntime("wasm", await fetchBinary(site.runtime.wasm, () => {}), await read(manifest.artifact), manifest, threads),
  );
  await open("@litertjs/core", () => openLiteRt("model.tflite", size, threads));
  const golden = [];
  for (const entry of manifest.golden) golden.push(await readGolden(entry, manifest, read));
  for (const each of Object.values(opened)) {
    for (const image of golden) {
      each.rows.push(compareOne(image, await each.runtime.run(image.tensor), size, manifest));
    }
  }
  for (let round = -1; round < rounds; round++) {
    for (const each of Object.values(opened)) {
      const taken = [];
      for (let query = 0; query < queries; query++) {
        const began = performance.now();
        await each.runtime.run(golden[query % golden.length].tensor);
        taken.push(performance.now() - began);
      }
      if (round >= 0) each.rounds_ms.push(taken);
    }
  }
  const entries = Object.entries(opened).map(([name, { load_ms, rows, rounds_ms }]) => [
    name,
    { load_ms, parity: total(rows), rounds_ms },
  ]);
  return { isolated: crossOriginIsolated, agent: navigator.userAgent, runtimes: Object.fromEntries(entries) };
}

const answer = await measure(await json("plan.json")).catch((error) => ({ problem: String(error?.stack ?? error) }));
await fetch("answer", { method: "PUT", body: JSON.stringify(answer) });
