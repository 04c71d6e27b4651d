// The packed model on onnxruntime-web: its WebGPU build where the browser has that, its WebAssembly build otherwise.

import { fetchListed } from "./fetching.js";
import { Problem } from "./strict_json.js";
import { scoreOfMap } from "./verdict.js";

const FILES = {
  webgpu: { script: "ort.webgpu.min.js", glue: "ort-wasm-simd-threaded.asyncify.js" },
  wasm: { script: "ort.wasm.min.js", glue: "ort-wasm-simd-threaded.js" },
};

const AGAIN = "copy the site again or export it anew";

/** Why WebGPU can't run a model of this precision here, or nothing. */
export async function whyNoWebGpu(precision) {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return "WebGPU finds no graphics adapter";
  const suits = precision !== "fp16" || adapter.features.has("shader-f16");
  return suits ? null : "the graphics adapter has no 16-bit shaders";
}

export function mostThreads() {
  return globalThis.crossOriginIsolated ? Math.max(1, Math.min(8, navigator.hardwareConcurrency || 1)) : 1;
}

/** The bytes of the runtime's WebAssembly binary, as site.json lists it, which `openRuntime` takes. */
export function fetchBinary(listed, progress) {
  return fetchListed(new URL(listed.path, import.meta.url), listed, "site.json", progress);
}

/**
 * What runs a model: `run(square)` takes size×size×3 RGB bytes and resolves to { map, score }.
 *
 * Throws a Problem when the runtime can't be loaded, or the model can't be opened or isn't what the manifest says.
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
    throw new Problem(`${manifest.artifact}: ${oneLine(error)}; export the bundle anew`);
  }
  const { input, outputs } = manifest;
  const shape = [1, input.size, input.size, 3];
  const found = session.inputMetadata.find((each) => each.name === input.name);
  if (!found || `${found.shape}` !== `${shape}` || found.type !== input.dtype) {
    throw new Problem(`${manifest.artifact}: its input is not the ${input.dtype} ${shape.join("×")} that the manifest says`);
  }
  const run = async (square) => {
    const values = input.dtype === "float32" ? new Float32Array(square) : square;
    const feeds = { [input.name]: new ort.Tensor(input.dtype, values, shape) };
    let answers;
    try {
      answers = await session.run(feeds);
    } catch (error) {
      throw new Problem(`${manifest.artifact}: fails to run: ${oneLine(error)}`);
    }
    const answer = answers[outputs.anomaly_map.name];
    if (`${answer?.dims}` !== `${outputs.anomaly_map.shape}`) {
      throw new Problem(`${manifest.artifact}: its map is not the ${outputs.anomaly_map.shape.join("×")} that the manifest says`);
    }
    const map = new Float32Array(answer.data); // a copy: the runtime will use its own again
    const score = outputs.score ? answers[outputs.score.name].data[0] : scoreOfMap(map);
    for (const each of Object.values(answers)) each.dispose();
    return { map, score };
  };
  return { run, release: () => session.release() };
}

function oneLine(error) {
  return String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 200);
}
