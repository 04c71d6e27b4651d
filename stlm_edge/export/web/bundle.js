// A bundle: manifest.json, the model, golden/. Nothing in it is trusted: sizes are checked first, then sha256.

import { fetchAtMost, fetchListed, forget } from "./fetching.js";
import { Problem, check, parse } from "./strict_json.js";

const MAX_MANIFEST_BYTES = 1 << 20;
const MAX_MODEL_BYTES = 256e6;
const MAX_GOLDEN_BYTES = 8e6;
const RUNTIMES = ["onnxruntime-web", "onnxruntime"]; // a bundle for CPUs holds an ONNX file, too
const KNOWN = {
  preprocessing: "exif-upright, rgb, antialiased-bilinear (Pillow), v1",
  sixteen_bit: "round(value / 257)",
  score_rule: "mean of the 100 highest values of the S×S map",
};

/** Parse a manifest and check it against the published schema and for contradictions. */
export function readManifest(text, schema, name = "manifest.json") {
  const manifest = parse(text, name);
  const version = manifest?.format_version;
  if (version !== 1) {
    throw new Problem(`${name}: bundle format ${String(version).slice(0, 20)}, this page reads 1; export it again`);
  }
  check(manifest, schema, name);
  if (!RUNTIMES.includes(manifest.runtime)) {
    const { target, runtime } = manifest;
    throw new Problem(`${name}: target ${target} with runtime ${runtime}, expected a bundle of target web`);
  }
  const wrong = contradiction(manifest);
  if (wrong) throw new Problem(`${name}: ${wrong}`);
  const { preprocessing, sixteen_bit } = manifest.input;
  for (const [key, value] of Object.entries({ preprocessing, sixteen_bit, score_rule: manifest.score_rule })) {
    if (value !== KNOWN[key]) {
      throw new Problem(`${name}: ${key}: found "${value.slice(0, 60)}", expected "${KNOWN[key]}"; export it again`);
    }
  }
  return manifest;
}

/** Open a bundle. Resolves to its `manifest` and `read(path)`, which resolves to the verified bytes of a listed file. */
export async function openBundle(base, schema) {
  const place = new URL("manifest.json", base);
  const text = new TextDecoder().decode(await fetchAtMost(place, MAX_MANIFEST_BYTES));
  let manifest;
  try {
    manifest = readManifest(text, schema);
  } catch (error) {
    await forget(place);
    throw error;
  }
  const listed = new Map(manifest.files.map((file) => [file.path, file]));
  const read = (path, progress) => fetchListed(new URL(path, base), listed.get(path), "the manifest", progress);
  return { manifest, read };
}

/** Return a contradiction within a manifest, or null, by the rules of the Python package. */
function contradiction(manifest) {
  const { files, input, artifact, golden } = manifest;
  const bytes = new Map(files.map((file) => [file.path, file.bytes]));
  const names = new Set(["manifest.json", ...files.map((file) => file.path.toLowerCase())]);
  if (names.size !== files.length + 1) return "files: a path is listed twice, or the manifest itself is";
  const side = input.size;
  if (side % 32) return `input.size: found ${side}, expected a multiple of 32`;
  const shape = [1, 1, side, side];
  if (`${manifest.outputs.anomaly_map.shape}` !== `${shape}`) return `outputs.anomaly_map.shape: expected [${shape}]`;
  if (!bytes.has(artifact)) return `artifact: ${artifact} is not in files`;
  if (bytes.get(artifact) > MAX_MODEL_BYTES) return `artifact: more than ${MAX_MODEL_BYTES / 1e6} MB`;
  for (const name of ["decision_threshold", "exported_threshold"]) {
    const decisionThreshold = manifest[name];
    if (decisionThreshold.value < decisionThreshold.median_score || decisionThreshold.map_high < decisionThreshold.map_low) {
      return `${name}: value < median_score, or map_high < map_low`;
    }
  }
  const delta = 0.01 * (manifest.decision_threshold.value - manifest.decision_threshold.median_score);
  if (Math.abs(manifest.verdict_delta - delta) > Math.max(1e-6 * delta, 1e-12)) {
    return `verdict_delta: expected ${delta} of this threshold`;
  }
  const used = new Set(golden.flatMap((each) => [each.image, each.tensor.file, each.map.file]));
  for (const path of used) if (!bytes.has(path)) return `golden: ${path} is not in files`;
  const total = [...used].reduce((sum, path) => sum + bytes.get(path), 0);
  if (total > MAX_GOLDEN_BYTES) return `golden: ${total} bytes in all, at most ${MAX_GOLDEN_BYTES} are allowed`;
  for (const [index, each] of golden.entries()) {
    const wrong = goldenContradiction(each, side, bytes);
    if (wrong) return `golden[${index}].${wrong}`;
  }
  return null;
}

function goldenContradiction({ tensor, map }, side, bytes) {
  if (`${tensor.shape}` !== `${[side, side, 3]}`) return `tensor.shape: expected [${side}, ${side}, 3]`;
  if (tensor.encoding === "raw" && bytes.get(tensor.file) !== side * side * 3) return "tensor: its size in bytes is wrong";
  const count = Math.ceil((side - map.offset) / map.stride);
  if (count < 1 || `${map.shape}` !== `${[count, count]}`) return "map.shape: does not match its stride and offset";
  if (bytes.get(map.file) !== count * count * 4) return "map: its size in bytes is wrong";
  return null;
}
