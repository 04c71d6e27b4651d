// bench.json: the result of a self-check in the format of stlm-bench. What is not measured is null.

/** Return the whole file as an object, `done` last, from an opened model and the result of `selfCheck`. */
export async function benchFile(model, result) {
  const row = rowOf(model, result);
  return {
    format_version: 1,
    headline: headline(row),
    date: `${new Date().toISOString().slice(0, 19)}Z`,
    command: "self-check of the web page",
    stlm_edge: model.site.stlm_edge,
    machine: await machine(model.site),
    devices: [],
    data: null,
    rows: [row],
    done: true,
  };
}

/** Return one line: whether the verdicts are those of the trained model, and the latency. */
function headline(row) {
  if (!row.passed) return `${row.name} FAILED: ${row.failure}`;
  const { images, verdict_flips: flips } = row.parity;
  let line = `${row.name}: same verdicts as the trained model on ${images - flips} of ${images} images`;
  if (flips) line += ` (${flips} within the tolerance of the threshold)`;
  if (row.latency_ms) line += `; p50 ${row.latency_ms.p50.toFixed(row.latency_ms.p50 < 20 ? 1 : 0)} ms`;
  return line;
}

function rowOf({ name, manifest, backend, threads, loadMs }, { answers, parity, wrong, firstInferenceMs, timing }) {
  const { teacher = null } = manifest.provenance;
  return {
    name,
    bundle: name,
    device: null,
    target: manifest.target,
    runtime: `onnxruntime-web/${backend}`,
    precision: manifest.precision,
    teacher: teacher === null || typeof teacher === "string" ? teacher : JSON.stringify(teacher),
    input_size: manifest.input.size,
    size_mb: manifest.files.find((file) => file.path === manifest.artifact).bytes / 1e6,
    threads,
    passed: !wrong.length,
    failure: wrong.join("; ") || null,
    parity,
    threshold: manifest.decision_threshold.value,
    verdict_delta: manifest.verdict_delta,
    golden: answers,
    load_ms: Math.round(loadMs),
    first_inference_ms: firstInferenceMs,
    peak_memory_mb: null,
    timed_even_if_wrong: wrong.length > 0 && timing !== null,
    placement: null,
    warmup: timing?.warmup ?? 0,
    steady: timing?.steady ?? null,
    queries: timing?.queries ?? 0,
    seconds: timing?.seconds ?? null,
    latency_ms: timing?.latency ?? null,
    end_to_end_ms: timing?.endToEnd ?? null,
    throughput: [],
    energy_mj: null,
    round_p50_ms: timing?.rounds ?? [],
    accuracy: null,
  };
}

async function machine(site) {
  const names = ["architecture", "bitness", "fullVersionList", "model", "platformVersion"];
  const hints = (await navigator.userAgentData?.getHighEntropyValues(names).catch(() => null)) ?? {};
  const browser = hints.fullVersionList?.find(({ brand }) => !/not.?a.?brand/i.test(brand));
  const cores = navigator.hardwareConcurrency || 1;
  const unknown = ["virtual", "governor", "load_before", "load_after", "power_mode"];
  return {
    device: hints.model || null,
    processor: null,
    architecture: [hints.architecture, hints.bitness].filter(Boolean).join("-") || "unknown",
    instructions: [],
    cores,
    cores_of_machine: null,
    memory_gb: null,
    ...Object.fromEntries(unknown.map((key) => [key, null])),
    clocks: {},
    celsius_before: {},
    celsius_after: {},
    throttling_events: null,
    system: [hints.platform, hints.platformVersion].filter(Boolean).join(" ") || navigator.platform || "unknown",
    kernel: "unknown",
    python: `none: JavaScript in ${browser ? `${browser.brand} ${browser.version}` : navigator.userAgent}`,
    packages: { "onnxruntime-web": site.runtime.version },
  };
}
