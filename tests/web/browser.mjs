// Drives the page in headless Chromium as a user would, and prints what it observed as one JSON object.
//
//   node browser.mjs CONFIG     CONFIG is JSON: chromium, tools (a folder of npm packages), root (what is served), shots

import { createRequire } from "node:module";
import { cp, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const config = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(config.tools, "package.json"))("./playwright-core");
const axe = await readFile(join(config.tools, "axe-core", "axe.min.js"), "utf8");
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json" }; // like a server that knows neither .mjs nor .wasm

const ISOLATED = { "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin" };

/** Start a static server without special headers except in isolated/. The model in slow/ waits for `release`. */
let release, asked;
const released = new Promise((resolve) => (release = resolve));
const modelAsked = new Promise((resolve) => (asked = resolve));
function serve() {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
    try {
      const file = join(config.root, path.endsWith("/") ? `${path}index.html` : path);
      const content = await readFile(file);
      if (path === "/slow/fp32/model.onnx") {
        asked();
        await released;
      }
      const headers = path.startsWith("/isolated/") ? ISOLATED : {};
      headers["Content-Type"] = TYPES[extname(file)] ?? "application/octet-stream";
      response.writeHead(200, headers).end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

const server = await serve();
const base = `http://127.0.0.1:${server.address().port}`;
const args = ["--use-fake-device-for-media-stream", "--no-sandbox", ...(config.args ?? [])];
const browser = await chromium.launch({ executablePath: config.chromium, headless: true, args });

async function open(path, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(config.timeout ?? 60_000);
  const seen = { foreign: [], console: [] };
  context.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !/^(blob|data):/.test(url)) seen.foreign.push(url);
  });
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.console.push(String(error)));
  await page.goto(`${base}/${path}`);
  return { context, page, seen };
}

const ready = (page) => page.waitForSelector("#check:enabled");
const problems = (page) => page.locator("#problems li").allTextContents();
const verdict = (page) =>
  page.evaluate(() => ({
    verdict: document.getElementById("verdict").textContent,
    score: Number(document.getElementById("score").textContent),
    name: document.getElementById("name").textContent,
  }));

async function judge(page, file) {
  const before = await page.locator("#strip li").count();
  await page.setInputFiles("#files", file);
  await page.waitForFunction((count) => document.querySelectorAll("#strip li").length > count || document.querySelector("#problems li"), before);
  return { ...(await verdict(page)), problems: await problems(page) };
}

/** Take screenshots of the page, narrow and wide; resolves to the accessibility problems that axe finds. */
async function look(page, name) {
  const found = [];
  await page.evaluate(axe); // through the debugger, which no Content-Security-Policy blocks
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: join(config.shots, `${name}-${width}.png`), fullPage: true });
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (wider > 0) found.push(`${name}: at ${width} pixels the page is ${wider} too wide`);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document));
    for (const { id, nodes } of violations) {
      found.push(`${name} ${width} ${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`);
    }
  }
  return found;
}

/** Start measuring the longest time in which the page did not respond, in ms: `blocked(page)`. */
const watch = (page) =>
  page.evaluate(() => {
    globalThis.longest = 0;
    let last = performance.now();
    setInterval(() => {
      const now = performance.now();
      globalThis.longest = Math.max(globalThis.longest, now - last);
      last = now;
    }, 10);
  });
const blocked = (page) => page.evaluate(() => globalThis.longest);

const scenarios = {
  async use() {
    const began = Date.now();
    const { context, page, seen } = await open("site/?check=16,0");
    await ready(page);
    const found = { ready_ms: Date.now() - began, where: await page.textContent("#where"), axe: [], judged: {} };
    found.isolated = await page.evaluate(() => crossOriginIsolated);
    found.axe.push(...(await look(page, "empty")));
    for (const file of config.images) {
      const judged = await judge(page, file);
      found.first_verdict_ms ??= Date.now() - began;
      found.judged[file] = judged;
    }
    // One more image, dropped as from a file manager.
    const bytes = [...(await readFile(config.images[0]))];
    await page.evaluate((content) => {
      const carried = new DataTransfer();
      carried.items.add(new File([new Uint8Array(content)], "dropped.png"));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
    }, bytes);
    await page.waitForFunction(() => document.getElementById("name").textContent === "dropped.png" || document.querySelector("#problems li"));
    found.dropped = await verdict(page);
    found.history = await page.locator("#strip button").count();
    await page.locator("#strip button").last().click();
    found.looked_back = await verdict(page);

    await watch(page);
    await page.click("#check");
    await page.waitForSelector("#checked-result:visible, #problems li");
    found.check_problems = await problems(page);
    found.unresponsive_ms = await blocked(page);
    found.headline = await page.textContent("#headline");
    found.rows = await page.locator("#rows tr").allTextContents();
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
    found.bench = await readFile(await download.path(), "utf8");
    found.axe.push(...(await look(page, "used")));
    await page.emulateMedia({ colorScheme: "dark" });
    found.axe.push(...(await look(page, "dark")));
    await context.close();
    return { ...found, ...seen };
  },

  async images() {
    const { context, page } = await open("tiny/");
    await ready(page);
    const refused = {};
    for (const [name, file] of Object.entries(config.refused)) refused[name] = (await judge(page, file)).problems;
    const axe = await look(page, "refused");
    const read = async ([path, size]) => {
      const { loadFile } = await import("./image.js");
      const file = await (await fetch(`/images/${path}`)).blob();
      const { square } = await loadFile(file, size);
      return btoa(Array.from(square, (byte) => String.fromCharCode(byte)).join(""));
    };
    const squares = {};
    for (const path of config.squares) squares[path] = await page.evaluate(read, [path, config.size]);
    await context.close();
    return { refused, axe, squares };
  },

  async broken() {
    const found = {};
    for (const path of config.broken) {
      const { context, page } = await open(path);
      await page.waitForSelector("#problems li");
      found[path] = await problems(page);
      await page.setInputFiles("#files", config.images[0]);
      await page.waitForFunction(() => !document.getElementById("files").value);
      found[path].push(...(await problems(page)));
      await context.close();
    }
    return found;
  },

  async loading() {
    const { context, page } = await open("slow/");
    await modelAsked;
    await page.waitForFunction(() => document.getElementById("loaded").value > 0); // the runtime is loaded
    const found = { early: (await judge(page, config.images[0])).problems, axe: await look(page, "loading") };
    release();
    await ready(page);
    found.loading_hidden = await page.isHidden("#loading");
    await context.close();
    return found;
  },

  // One server that isolates its pages, and one where the service worker can't be installed.
  async served() {
    const found = {};
    for (const path of ["isolated/", "no-icon/"]) {
      const { context, page } = await open(path);
      await ready(page);
      found[path] = { offline: false, judged: await judge(page, config.images[0]) };
      if (path === "isolated/") {
        await page.waitForFunction(() => document.getElementById("facts").textContent.includes("offline"));
        found[path].offline = await page.evaluate(async (model) => Boolean(await caches.match(model)), "fp32/model.onnx");
      }
      await context.close();
    }
    return found;
  },

  // The site is exported again while a page is open, and again before a page whose model is no longer cached.
  async updated() {
    const exportAgain = (name) =>
      cp(join(config.root, name), join(config.root, "updated"), { recursive: true, filter: (path) => !path.endsWith("/runtime") });
    const { context, page } = await open("updated/");
    const kept = () => document.getElementById("facts").textContent.includes("offline");
    await page.waitForFunction(kept);
    const found = { before: await judge(page, config.images[0]) };
    found.before.threshold = await page.textContent("#threshold");
    await exportAgain("second");
    await page.evaluate(async () => (await navigator.serviceWorker.getRegistration()).update()); // browsers do so by themselves later
    await page.waitForFunction(() => document.getElementById("newer").textContent);
    found.offered = { ...(await judge(page, config.images[0])), threshold: await page.textContent("#threshold") };
    await page.reload();
    await page.waitForFunction(kept);
    found.after = { ...(await judge(page, config.images[0])), threshold: await page.textContent("#threshold") };
    found.caches = await page.evaluate(async () => (await caches.keys()).length);

    await page.evaluate(async () => {
      for (const name of await caches.keys()) await (await caches.open(name)).delete(new URL("fp32/model.onnx", location));
    });
    await exportAgain("third");
    await page.reload();
    await page.waitForFunction(kept);
    found.interrupted = { ...(await judge(page, config.images[0])), threshold: await page.textContent("#threshold") };
    await context.close();
    return found;
  },

  async camera() {
    const refused = await open("tiny/");
    await ready(refused.page);
    await refused.page.click("#camera");
    await refused.page.waitForSelector("#problems li");
    const found = { refused: await problems(refused.page) };
    await refused.context.close();

    const { context, page, seen } = await open("tiny/", { permissions: ["camera"] });
    await ready(page);
    await page.evaluate(() => {
      globalThis.streams = [];
      const devices = navigator.mediaDevices, getUserMedia = devices.getUserMedia.bind(devices);
      devices.getUserMedia = async (wanted) => {
        const stream = await getUserMedia(wanted);
        globalThis.streams.push(stream);
        return stream;
      };
    });
    const named = (name) => page.waitForFunction((expected) => document.getElementById("name").textContent === expected, name);
    const ended = () => page.waitForFunction(() => document.getElementById("camera").textContent === "Use the camera");
    const running = () => page.evaluate(() => globalThis.streams.flatMap((stream) => stream.getTracks()).filter((track) => track.readyState === "live").length);
    await page.evaluate(() => {
      document.getElementById("camera").click();
      document.getElementById("camera").click(); // while the browser asks for permission
    });
    await named("Camera");
    found.live = await verdict(page);
    found.opened = await page.evaluate(() => globalThis.streams.length);
    found.axe = await look(page, "camera");
    await watch(page);
    await page.waitForTimeout(2000);
    found.unresponsive_ms = await blocked(page);
    await page.click("#keep");
    found.kept = await page.locator("#strip button").count();

    await page.setInputFiles("#files", config.images[0]);
    await ended();
    await page.waitForFunction(() => document.querySelectorAll("#strip li").length === 2);
    await page.waitForTimeout(500);
    found.dropped = { ...(await verdict(page)), running: await running() };

    await page.evaluate(() => (document.getElementById("name").textContent = ""));
    await page.click("#camera");
    await named("Camera");
    found.problems = await problems(page);
    await page.evaluate(() => globalThis.streams.at(-1).getTracks()[0].stop()); // like unplugging it
    await ended();
    found.gone = await problems(page);

    await page.evaluate(() => (HTMLMediaElement.prototype.play = () => Promise.reject(new DOMException("no", "AbortError"))));
    await page.click("#camera");
    await page.waitForFunction(() => document.querySelector("#problems li")?.textContent.includes("no image"));
    found.no_image = { problems: await problems(page), running: await running() };
    await context.close();
    return { ...found, console: seen.console };
  },

  // Also on a software graphics adapter, if the browser is started with one.
  async webgpu() {
    const { context, page, seen } = await open("site/?backend=webgpu");
    await page.waitForSelector("#check:enabled, #problems li");
    const found = { where: await page.textContent("#where"), problems: await problems(page), judged: {} };
    for (const file of config.images) found.judged[file] = await judge(page, file);
    await context.close();
    return { ...found, ...seen };
  },

  // The rate of verdicts when one image follows the other.
  async speed() {
    const began = Date.now();
    const { context, page } = await open("site/");
    await ready(page);
    await judge(page, config.images[0]);
    const found = { first_verdict_ms: Date.now() - began, where: await page.textContent("#where") };
    const started = Date.now();
    await page.setInputFiles("#files", Array.from({ length: 20 }, (_, index) => config.images[index % config.images.length]));
    await page.waitForFunction(() => document.querySelectorAll("#strip li").length === 21);
    found.verdicts_per_second = 20 / ((Date.now() - started) / 1e3);
    await context.close();
    return found;
  },

  // Must be the last one: it stops the server.
  async offline() {
    const { context, page } = await open("tiny/");
    await page.waitForFunction(() => document.getElementById("facts").textContent.includes("offline"));
    await new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });
    await page.reload();
    await ready(page);
    const found = { where: await page.textContent("#where"), judged: await judge(page, config.images[0]) };
    await context.close();
    return found;
  },
};

const found = {};
for (const name of config.scenarios ?? Object.keys(scenarios)) {
  const began = Date.now();
  try {
    found[name] = await scenarios[name]();
  } catch (error) {
    found[name] = { error: String(error?.stack ?? error) };
  }
  found[name].took_ms = Date.now() - began;
}
await browser.close();
server.close();
process.stdout.write(JSON.stringify(found));
