// A verdict on the screen: image, heatmap, score against the threshold; and the strip of those before it.

const MOST_REMEMBERED = 24;
const $ = (id) => document.getElementById(id);

/** `found`: name, anomalous, score, milliseconds, and the bitmaps `shown` and `heat`. */
export function show(found, decisionThreshold) {
  const image = $("image"), heat = $("heat");
  draw(image, found.shown);
  draw(heat, found.heat);
  heat.style.opacity = $("opacity").value / 100;

  const verdict = $("verdict");
  verdict.textContent = found.anomalous ? "✗ Anomalous" : "✓ Normal";
  verdict.className = kind(found);
  $("name").textContent = found.name;
  image.setAttribute("aria-label", `${found.name}: ${kind(found)}`);
  $("score").textContent = found.score.toFixed(5);
  $("threshold").textContent = decisionThreshold.value.toFixed(5);
  $("time").textContent = `${found.milliseconds.toFixed(0)} ms`;
  const { map_low: low, map_high: high } = decisionThreshold;
  const place = (value) => `${100 * Math.min(Math.max((value - low) / Math.max(high - low, 1e-9), 0), 1)}%`;
  $("mark").style.left = place(found.score);
  $("limit").style.left = place(decisionThreshold.value);
  $("scale").setAttribute("aria-label", `Score ${found.score.toFixed(5)}, threshold ${decisionThreshold.value.toFixed(5)}`);
  $("result").hidden = false;
  for (const button of $("strip").querySelectorAll("button")) button.setAttribute("aria-pressed", button.found === found);
}

/** Put a verdict into the strip, the newest first, from where it can be looked at again. */
export function remember(found, decisionThreshold) {
  const button = document.createElement("button");
  button.type = "button";
  button.found = found;
  button.className = kind(found);
  button.append(thumbnail(found.shown), label(found.anomalous ? "✗" : "✓", found.score.toFixed(3)));
  button.setAttribute("aria-label", `${found.name}: ${kind(found)}, score ${found.score.toFixed(3)}`);
  button.addEventListener("click", () => show(found, decisionThreshold));
  const item = document.createElement("li");
  item.append(button);
  $("strip").prepend(item);
  $("history").hidden = false;
  for (const each of $("strip").querySelectorAll("button")) each.setAttribute("aria-pressed", each === button);
  if ($("strip").children.length > MOST_REMEMBERED) $("strip").lastElementChild.remove();
}

function draw(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

function kind(found) {
  return found.anomalous ? "anomalous" : "normal";
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
