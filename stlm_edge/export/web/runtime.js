// Runs the model on onnxruntime-web, in its WebGPU or its WebAssembly build.

import { fetchListed } from "./fetching.js";
import { Problem } from "./strict_json.js";
import { scoreOfMap } from "./verdict.js";

const FILES = {
  webgpu: { script: "ort.webgpu.min.js", glue: "ort-wasm-simd-threaded.asyncify.js" },
  wasm: { script: "ort.wasm.min.js", glue: "ort-wasm-simd-threaded.js" },
};

const AGAIN = "copy the site again or export it again";

/** Resolve to the reason why WebGPU can't run a model of this precision, or null. */
export async function whyNoWebGpu(precision) {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return "WebGPU finds no graphics adapter";
  const supported = precision !== "fp16" || adapter.features.has("shader-f16");
  return supported ? null : "the graphics adapter has no 16-bit shaders";
}

/** Return the number of threads that WebAssembly can use, at most 8. */
export function mostThreads() {
  return globalThis.crossOriginIsolated ? Math.max(1, Math.min(8, navigator.hardwareConcurrency || 1)) : 1;
}

/** Fetch the runtime's WebAssembly binary, as listed in site.json, for `openRuntime`. */
export function fetchBinary(listed, progress) {
  return fetchListed(new URL(listed.path, import.meta.url), listed, "site.json", progress);
}

/**
 * Open a model; `run(square)` takes size×size×3 RGB bytes and resolves to { map, score }.
 *
 * Throws a Problem if the runtime can't be loaded, or the model can't be opened or doesn't match the manifest.
 */
export async function openRuntime(backend, binary, model, manifest, threads) {
  const { script, glue } = FILES[backend];
  let ort;
  try {
    ort = await import(new URL(`runtime/${script}`, import.meta.url));
  } catch (error) {
    throw new Problem(`runtime/${script}: ${oneLine(error)}; ${AGAIN}`);
  }
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: new URL(`runtime/${glue}`, import.meta.url).href };
  let session;
  try {
    session = await ort.InferenceSession.create(model, { executionProviders: [backend], logSeverityLevel: 3 });
  } catch (error) {
    if (/no available backend/.test(error.message)) throw new Problem(`runtime/${glue}: ${oneLine(error)}; ${AGAIN}`);
    throw new Problem(`${manifest.artifact}: ${oneLine(error)}; export the bundle again`);
  }
  const { input, outputs } = manifest;
  const shape = [1, input.size, input.size, 3];
  const actual = session.inputMetadata.find((each) => each.name === input.name);
  if (!actual || `${actual.shape}` !== `${shape}` || actual.type !== input.dtype) {
    throw new Problem(`${manifest.artifact}: its input is not the ${input.dtype} ${shape.join("×")} of the manifest`);
  }
  const run = async (square) => {
    const values = input.dtype === "float32" ? new Float32Array(square) : square;
    const feeds = { [input.name]: new ort.Tensor(input.dtype, values, shape) };
    let results;
    try {
      results = await session.run(feeds);
    } catch (error) {
      throw new Problem(`${manifest.artifact}: fails to run: ${oneLine(error)}`);
    }
    const output = results[outputs.anomaly_map.name];
    if (`${output?.dims}` !== `${outputs.anomaly_map.shape}`) {
      throw new Problem(`${manifest.artifact}: its map is not the ${outputs.anomaly_map.shape.join("×")} of the manifest`);
    }
    const map = new Float32Array(output.data); // a copy, since the runtime reuses its buffer
    const score = outputs.score ? results[outputs.score.name].data[0] : scoreOfMap(map);
    for (const each of Object.values(results)) each.dispose();
    return { map, score };
  };
  return { run, release: () => session.release() };
}

function oneLine(error) {
  return String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 200);
}
