// Shows a verdict: image, heatmap, score and threshold; and the history of earlier verdicts.

const MAX_HISTORY = 24;
const $ = (id) => document.getElementById(id);

/** Show a verdict: name, anomalous, score, milliseconds, and the bitmaps `shown` and `heat`. */
export function show(verdict, decisionThreshold) {
  const image = $("image"), heat = $("heat");
  draw(image, verdict.shown);
  draw(heat, verdict.heat);
  heat.style.opacity = $("opacity").value / 100;

  $("verdict").textContent = verdict.anomalous ? "✗ Anomalous" : "✓ Normal";
  $("verdict").className = kind(verdict);
  $("name").textContent = verdict.name;
  image.setAttribute("aria-label", `${verdict.name}: ${kind(verdict)}`);
  $("score").textContent = verdict.score.toFixed(5);
  $("threshold").textContent = decisionThreshold.value.toFixed(5);
  $("time").textContent = `${verdict.milliseconds.toFixed(0)} ms`;
  const { map_low: low, map_high: high } = decisionThreshold;
  const place = (value) => `${100 * Math.min(Math.max((value - low) / Math.max(high - low, 1e-9), 0), 1)}%`;
  $("mark").style.left = place(verdict.score);
  $("limit").style.left = place(decisionThreshold.value);
  $("scale").setAttribute("aria-label", `Score ${verdict.score.toFixed(5)}, threshold ${decisionThreshold.value.toFixed(5)}`);
  $("result").hidden = false;
  for (const button of $("strip").querySelectorAll("button")) button.setAttribute("aria-pressed", button.verdict === verdict);
}

/** Add a verdict to the history, the newest first; a click shows it again. */
export function remember(verdict, decisionThreshold) {
  const button = document.createElement("button");
  button.type = "button";
  button.verdict = verdict;
  button.className = kind(verdict);
  button.append(thumbnail(verdict.shown), label(verdict.anomalous ? "✗" : "✓", verdict.score.toFixed(3)));
  button.setAttribute("aria-label", `${verdict.name}: ${kind(verdict)}, score ${verdict.score.toFixed(3)}`);
  button.addEventListener("click", () => show(verdict, decisionThreshold));
  const item = document.createElement("li");
  item.append(button);
  $("strip").prepend(item);
  $("history").hidden = false;
  for (const each of $("strip").querySelectorAll("button")) each.setAttribute("aria-pressed", each === button);
  if ($("strip").children.length > MAX_HISTORY) $("strip").lastElementChild.remove();
}

function draw(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

function kind(verdict) {
  return verdict.anomalous ? "anomalous" : "normal";
}

function label(...words) {
  const span = document.createElement("span");
  span.textContent = words.join(" ");
  return span;
}

function thumbnail(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 168;
  const side = Math.min(bitmap.width, bitmap.height);
  const left = (bitmap.width - side) / 2, top = (bitmap.height - side) / 2;
  canvas.getContext("2d").drawImage(bitmap, left, top, side, side, 0, 0, 168, 168);
  return canvas;
}
