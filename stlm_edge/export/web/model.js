// Opens the site's model on the best backend of this browser: fp16 on WebGPU, or else int8 on WebAssembly.

import { openBundle } from "./bundle.js";
import { fetchAtMost } from "./fetching.js";
import { readGolden } from "./golden.js";
import { fetchBinary, mostThreads, openRuntime, whyNoWebGpu } from "./runtime.js";
import { Problem, check, parse } from "./strict_json.js";
import { compareOne, problems, total } from "./verdict.js";

const PRECISIONS = { webgpu: ["fp16", "fp32"], wasm: ["int8", "fp32", "fp16"] }; // the best one first
const BINARY = {
  type: "object",
  required: ["path", "bytes", "sha256"],
  properties: {
    path: { type: "string", pattern: "^runtime/[a-z.-]+$" },
    bytes: { type: "integer", maximum: 64e6 },
    sha256: { type: "string" },
  },
};
const SITE = {
  type: "object",
  required: ["stlm_edge", "runtime", "bundles"],
  properties: {
    stlm_edge: { type: "string" },
    runtime: {
      type: "object",
      required: ["version", "wasm", "webgpu"],
      properties: { version: { type: "string" }, wasm: BINARY, webgpu: BINARY },
    },
    bundles: {
      type: "array",
      minItems: 1,
      items: {
        type: "object",
        required: ["name", "folder", "precision"],
        properties: {
          name: { type: "string" },
          folder: { type: "string", pattern: "^[A-Za-z0-9_][A-Za-z0-9._\\-]{0,99}$" },
          precision: { type: "string" },
        },
      },
    },
  },
};

/**
 * Open the model. `backend` ("webgpu" or "wasm") forces one; `threads` is for WebAssembly. `progress` is called with the
 * bytes loaded and their total. Resolves to the bundle's `manifest` and `read`, the `runtime`, the chosen `backend` and
 * `threads`, and `note`, the reason if it is not WebGPU.
 */
export async function openModel({ backend, threads }, progress) {
  const json = async (name) => parse(new TextDecoder().decode(await fetchAtMost(new URL(name, import.meta.url), 1e6)), name);
  const site = await json("site.json");
  check(site, SITE, "site.json");
  const schema = await json("manifest.schema.json");
  const notes = [];
  const attempts = [];
  if (backend !== "wasm") {
    const best = pick(site, "webgpu");
    const reason = best ? await whyNoWebGpu(best.precision) : "this site has no fp16 model for WebGPU";
    if (!reason) attempts.push("webgpu");
    else if (backend) throw new Problem(`WebGPU can't be used: ${reason}`);
    else notes.push(reason);
  }
  if (backend !== "webgpu") attempts.push("wasm");
  for (const attempt of attempts) {
    const used = attempt === "wasm" ? Math.min(threads || Infinity, mostThreads()) : 1;
    try {
      const opened = await openOn(attempt, site, schema, used, progress);
      return { site, backend: attempt, threads: used, note: notes.join("; ") || null, ...opened };
    } catch (error) {
      if (attempt === attempts.at(-1)) throw error;
      notes.push(`WebGPU failed: ${error.message}`);
    }
  }
  throw new Problem("site.json: no bundle that this page can run; export the site again");
}

function pick(site, backend) {
  for (const precision of PRECISIONS[backend]) {
    const listed = site.bundles.find((bundle) => bundle.precision === precision);
    if (listed) return listed;
  }
  return null;
}

async function openOn(backend, site, schema, threads, progress) {
  const listed = pick(site, backend);
  if (!listed) throw new Problem("site.json: no bundle that this page can run; export the site again");
  const began = performance.now();
  const { manifest, read } = await openBundle(new URL(`${listed.folder}/`, import.meta.url), schema);
  const engine = site.runtime[backend];
  const sizes = [manifest.files.find((file) => file.path === manifest.artifact).bytes, engine.bytes];
  const done = [0, 0];
  const part = (index) => (bytes) => {
    done[index] = bytes;
    progress(done[0] + done[1], sizes[0] + sizes[1]);
  };
  const [model, binary] = await Promise.all([read(manifest.artifact, part(0)), fetchBinary(engine, part(1))]);
  const runtime = await openRuntime(backend, binary, model, manifest, threads);
  if (backend === "webgpu") await checkOneImage(manifest, read, runtime);
  return { name: listed.name, manifest, read, runtime, loadMs: performance.now() - began };
}

/** Check a golden image, since some graphics drivers compute wrong results. */
async function checkOneImage(manifest, read, runtime) {
  const golden = await readGolden(manifest.golden[0], manifest, read);
  const row = compareOne(golden, await runtime.run(golden.tensor), manifest.input.size, manifest);
  const wrong = problems(total([row]), manifest.precision);
  if (wrong.length) {
    await runtime.release();
    throw new Problem(wrong.join("; "));
  }
}
