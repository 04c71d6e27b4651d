// The page: images in, verdicts out. The model runs in a worker.

import { openCamera } from "./camera.js";
import { Engine } from "./engine.js";
import { lookForNewer, serveOffline } from "./offline.js";
import { showCheck } from "./show_check.js";
import { remember, show } from "./show_verdict.js";

// Parameters of the address: ?backend=wasm or webgpu, &threads=1, &check=QUERIES,SECONDS; set by the bench: &bench,
// &even-if-wrong.
const $ = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
let engine = null;
let model = null;
let failure = "The model is not loaded yet; wait for it, then drop the images again";
let live = null;
let filming = false; // from the click on, also while the browser asks for permission

function progress({ what, done, of }) {
  const bar = $(what === "model" ? "loaded" : "checked");
  bar.max = of;
  bar.value = done;
  if (what !== "model") $("checking-what").textContent = sentence(what);
}

function report(message) {
  const line = document.createElement("li");
  line.textContent = message;
  $("problems").append(line);
}

async function judgeFiles(files) {
  $("problems").replaceChildren();
  if (!model) return report(failure);
  live?.stop();
  for (const file of files) {
    try {
      const verdict = { name: file.name, ...(await engine.run("judge", { file })) };
      show(verdict, model.decisionThreshold);
      remember(verdict, model.decisionThreshold);
    } catch (error) {
      report(`${file.name}: ${error.message}`);
    }
  }
  return undefined;
}

async function runCamera() {
  if (filming) return;
  $("problems").replaceChildren();
  filming = true;
  try {
    live = await openCamera();
    $("camera").textContent = "Stop the camera";
    $("keep").hidden = false;
    for (let frame = await live.frame(); frame; frame = await live.frame()) {
      const verdict = { name: "Camera", ...(await engine.run("judge", { frame }, [frame])) };
      if (live.stopped()) break;
      live.latest = verdict;
      show(verdict, model.decisionThreshold);
    }
  } catch (error) {
    report(error.message);
  }
  live?.stop();
  live = null;
  filming = false;
  $("camera").textContent = "Use the camera";
  $("keep").hidden = true;
}

async function check() {
  $("check").disabled = true;
  $("checking").hidden = false;
  try {
    const [queries, seconds] = (parameters.get("check") ?? "128,10").split(",").map(Number);
    const bench = await engine.run("check", { queries, seconds, evenIfWrong: parameters.has("even-if-wrong") });
    showCheck(bench);
    return bench;
  } finally {
    $("checking").hidden = true;
    $("check").disabled = false;
  }
}

function describe({ backend, threads, note, precision, size, site, teacher }) {
  const on = backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  const alone = backend === "wasm" && threads === 1 && !crossOriginIsolated ? " (the page is not cross-origin isolated)" : "";
  $("where").textContent = `Runs on ${on}${alone}: ${precision} model, ${size}×${size}.${note ? ` ${sentence(note)}.` : ""}`;
  const teacherNote = /efficientnet/i.test(JSON.stringify(teacher)) ? " Distilled from a proxy teacher, EfficientNet-Lite0, not from SAM." : "";
  $("facts").textContent = `stlm-edge ${site.stlm_edge}, onnxruntime-web ${site.runtime.version}.${teacherNote}`;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** Send a self-check to the bench, which opened the page with ?bench and runs its server. */
async function answerBench() {
  let answer;
  try {
    answer = { bench: await check() };
  } catch (error) {
    answer = { problem: error.message };
  }
  await fetch("answer", { method: "PUT", body: JSON.stringify(answer) });
}

/** Reload at once if the model is not loaded yet, so that no files of two versions mix. */
function offerNewer() {
  if (!model) location.reload();
  $("newer").textContent = " A newer version is available; reload the page to use it.";
}

async function start() {
  const offline = parameters.has("bench") ? false : await serveOffline(offerNewer);
  engine = new Engine(progress);
  try {
    model = await engine.run("open", { backend: parameters.get("backend"), threads: Number(parameters.get("threads")) });
  } catch (error) {
    $("where").textContent = "The model could not be loaded.";
    $("loading").hidden = true;
    failure = error.message;
    report(failure);
    if (parameters.has("bench")) await fetch("answer", { method: "PUT", body: JSON.stringify({ problem: failure }) });
    else lookForNewer().catch(() => {}); // cached files and those on the server may be of different versions
    return;
  }
  $("loading").hidden = true;
  $("camera").disabled = $("check").disabled = false;
  describe(model);
  if (parameters.has("bench")) return void answerBench();
  if (offline && (await engine.run("save").then(() => true, () => false))) $("facts").append(" Now works offline, too.");
}

$("files").addEventListener("change", async ({ target }) => {
  await judgeFiles([...target.files]);
  target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") judgeFiles([...event.dataTransfer.files]);
  });
}
$("camera").addEventListener("click", () => (live ? live.stop() : runCamera()));
$("keep").addEventListener("click", () => live?.latest && remember(live.latest, model.decisionThreshold));
$("check").addEventListener("click", () => check().catch((error) => report(error.message)));
$("opacity").addEventListener("input", ({ target }) => ($("heat").style.opacity = target.value / 100));
start();
