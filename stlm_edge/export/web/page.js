// The page: images in, verdicts out. What takes long happens in the worker.

import { openCamera } from "./camera.js";
import { Engine } from "./engine.js";
import { lookForNewer, serveOffline } from "./offline.js";
import { showCheck } from "./show_check.js";
import { remember, show } from "./show_verdict.js";

// What the address may ask for: ?backend=wasm or webgpu, &threads=1, &check=QUERIES,SECONDS; the bench's: &bench,
// &even-if-wrong.
const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
let engine = null;
let model = null;
let failure = "The model is not loaded yet; wait for it, then drop the images again";
let live = null;
let filming = false; // from the press on: while the browser asks whether it may, too

function progress({ what, done, of }) {
  const bar = $(what === "model" ? "loaded" : "checked");
  bar.max = of;
  bar.value = done;
  if (what !== "model") $("checking-what").textContent = sentence(what);
}

function complain(message) {
  const line = document.createElement("li");
  line.textContent = message;
  $("problems").append(line);
}

async function judgeFiles(files) {
  $("problems").replaceChildren();
  if (!model) return complain(failure);
  live?.stop();
  for (const file of files) {
    try {
      const found = { name: file.name, ...(await engine.ask("judge", { file })) };
      show(found, model.decisionThreshold);
      remember(found, model.decisionThreshold);
    } catch (error) {
      complain(`${file.name}: ${error.message}`);
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
      const found = { name: "Camera", ...(await engine.ask("judge", { frame }, [frame])) };
      if (live.stopped()) break;
      live.latest = found;
      show(found, model.decisionThreshold);
    }
  } catch (error) {
    complain(error.message);
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
    const [queries, seconds] = (asked.get("check") ?? "128,10").split(",").map(Number);
    const bench = await engine.ask("check", { queries, seconds, evenIfWrong: asked.has("even-if-wrong") });
    showCheck(bench);
    return bench;
  } finally {
    $("checking").hidden = true;
    $("check").disabled = false;
  }
}

function describe({ backend, threads, note, precision, size, site, teacher }) {
  const way = backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  const alone = backend === "wasm" && threads === 1 && !crossOriginIsolated ? " (the page is not cross-origin isolated)" : "";
  $("where").textContent = `Runs on ${way}${alone}: ${precision} model, ${size}×${size}.${note ? ` ${sentence(note)}.` : ""}`;
  const learnt = /efficientnet/i.test(JSON.stringify(teacher)) ? " Distilled from a stand-in teacher, EfficientNet-Lite0, not from SAM." : "";
  $("facts").textContent = `stlm-edge ${site.stlm_edge}, onnxruntime-web ${site.runtime.version}.${learnt}`;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** The bench opens the page with ?bench and waits for its answer at the page's own server. */
async function answerBench() {
  let answer;
  try {
    answer = { bench: await check() };
  } catch (error) {
    answer = { problem: error.message };
  }
  await fetch("answer", { method: "PUT", body: JSON.stringify(answer) });
}

/** A page that is still loading, or could not, takes it at once, lest it get files of both. */
function offerNewer() {
  if (!model) location.reload();
  $("newer").textContent = " A newer version is here: load the page again to use it.";
}

async function start() {
  const kept = asked.has("bench") ? false : await serveOffline(offerNewer);
  engine = new Engine(progress);
  try {
    model = await engine.ask("open", { backend: asked.get("backend"), threads: Number(asked.get("threads")) });
  } catch (error) {
    $("where").textContent = "The model could not be loaded.";
    $("loading").hidden = true;
    failure = error.message;
    complain(failure);
    if (asked.has("bench")) await fetch("answer", { method: "PUT", body: JSON.stringify({ problem: failure }) });
    else lookForNewer().catch(() => {}); // what is kept and what the server has may not belong together
    return;
  }
  $("loading").hidden = true;
  $("camera").disabled = $("check").disabled = false;
  describe(model);
  if (asked.has("bench")) return void answerBench();
  if (kept && (await engine.ask("save").then(() => true, () => false))) $("facts").append(" Works without a network from now on.");
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
$("check").addEventListener("click", () => check().catch((error) => complain(error.message)));
$("opacity").addEventListener("input", ({ target }) => ($("heat").style.opacity = target.value / 100));
start();
