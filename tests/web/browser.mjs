// Drives the page in headless Chromium as a user would, and prints what was seen as one object of JSON.
//
//   node browser.mjs CONFIG     CONFIG is JSON: chromium, tools (a folder of npm packages), root (what is served), shots

import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const config = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(config.tools, "package.json"))("./playwright-core");
const axe = await readFile(join(config.tools, "axe-core", "axe.min.js"), "utf8");
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json", ".wasm": "application/wasm" };

/** A static server like any other: no special headers. */
function serve() {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
    try {
      const file = join(config.root, path.endsWith("/") ? `${path}index.html` : path);
      const content = await readFile(file);
      response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" }).end(content);
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

async function accessibility(page) {
  await page.evaluate(axe); // by the debugger, which no Content-Security-Policy hinders
  const { violations } = await page.evaluate(() => globalThis.axe.run(document));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`);
}

async function screenshots(page, name) {
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: join(config.shots, `${name}-${width}.png`), fullPage: true });
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (wider > 0) throw new Error(`${name}: at ${width} pixels the page is ${wider} too wide`);
  }
}

const scenarios = {
  async use() {
    const began = Date.now();
    const { context, page, seen } = await open("site/?check=16,0");
    await ready(page);
    const found = { ready_ms: Date.now() - began, where: await page.textContent("#where"), axe: [], judged: {} };
    found.isolated = await page.evaluate(() => crossOriginIsolated);
    await screenshots(page, "empty");
    for (const file of config.pictures) {
      const judged = await judge(page, file);
      found.first_verdict_ms ??= Date.now() - began;
      found.judged[file] = judged;
    }
    // One more, dropped as from a file manager.
    const bytes = [...(await readFile(config.pictures[0]))];
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
    found.axe.push(...(await accessibility(page)));

    await page.evaluate(() => {
      globalThis.longest = 0;
      let last = performance.now();
      setInterval(() => {
        const now = performance.now();
        globalThis.longest = Math.max(globalThis.longest, now - last);
        last = now;
      }, 10);
    });
    await page.click("#check");
    await page.waitForSelector("#checked-result:visible, #problems li");
    found.check_problems = await problems(page);
    found.unresponsive_ms = await page.evaluate(() => globalThis.longest);
    found.headline = await page.textContent("#headline");
    found.rows = await page.locator("#rows tr").allTextContents();
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
    found.bench = await readFile(await download.path(), "utf8");
    await screenshots(page, "used");
    found.axe.push(...(await accessibility(page)));
    await page.emulateMedia({ colorScheme: "dark" });
    await screenshots(page, "dark");
    found.axe.push(...(await accessibility(page)));
    await context.close();
    return { ...found, ...seen };
  },

  async pictures() {
    const { context, page } = await open("tiny/");
    await ready(page);
    const refused = {};
    for (const [name, file] of Object.entries(config.refused)) refused[name] = (await judge(page, file)).problems;
    await screenshots(page, "refused");
    const axe = await accessibility(page);
    const read = async ([path, size]) => {
      const { loadFile } = await import("./picture.js");
      const file = await (await fetch(`/pictures/${path}`)).blob();
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
      await context.close();
    }
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
    await page.click("#camera");
    await page.waitForFunction(() => document.getElementById("name").textContent === "Camera");
    found.live = await verdict(page);
    await page.click("#keep");
    found.kept = await page.locator("#strip button").count();
    await page.click("#camera");
    await page.waitForFunction(() => document.getElementById("camera").textContent === "Use the camera");
    await context.close();
    return { ...found, problems: seen.console };
  },

  // Also by a graphics adapter that the processor plays, where the browser is told to.
  async webgpu() {
    const { context, page, seen } = await open("site/?backend=webgpu");
    await page.waitForSelector("#check:enabled, #problems li");
    const found = { where: await page.textContent("#where"), problems: await problems(page), judged: {} };
    for (const file of config.pictures) found.judged[file] = await judge(page, file);
    await context.close();
    return { ...found, ...seen };
  },

  // As fast as verdicts come when one picture follows the other.
  async speed() {
    const began = Date.now();
    const { context, page } = await open("site/");
    await ready(page);
    await judge(page, config.pictures[0]);
    const found = { first_verdict_ms: Date.now() - began, where: await page.textContent("#where") };
    const started = Date.now();
    await page.setInputFiles("#files", Array.from({ length: 20 }, (_, index) => config.pictures[index % config.pictures.length]));
    await page.waitForFunction(() => document.querySelectorAll("#strip li").length === 21);
    found.verdicts_per_second = 20 / ((Date.now() - started) / 1e3);
    await context.close();
    return found;
  },

  // The last one: it takes the server away.
  async offline() {
    const { context, page } = await open("tiny/");
    await page.waitForFunction(() => document.getElementById("facts").textContent.includes("without a network"));
    await new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });
    await page.reload();
    await ready(page);
    const found = { where: await page.textContent("#where"), judged: await judge(page, config.pictures[0]) };
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
