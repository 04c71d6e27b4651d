// Opens a report in headless Chromium, narrow and wide, in light and dark mode; prints what was observed as JSON.
//
//   node report.mjs CONFIG     CONFIG is JSON: chromium, tools (a folder of npm packages), report (its address),
//                             shots (a folder)

import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

const config = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(config.tools, "package.json"))("./playwright-core");
const axe = await readFile(join(config.tools, "axe-core", "axe.min.js"), "utf8");

const browser = await chromium.launch({ executablePath: config.chromium, headless: true, args: ["--no-sandbox"] });
const page = await browser.newPage();
page.setDefaultTimeout(120_000);
const seen = { fetched: [], console: [], problems: [] };
page.on("request", (request) => /^(data|file):/.test(request.url()) || seen.fetched.push(request.url()));
page.on("console", (message) => seen.console.push(message.text()));
page.on("pageerror", (error) => seen.console.push(String(error)));
await page.goto(config.report);
await page.evaluate(axe); // by the debugger, which no Content-Security-Policy hinders
for (const colorScheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme });
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: join(config.shots, `${colorScheme}-${width}.png`), fullPage: true });
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (wider > 0) seen.problems.push(`${colorScheme}, ${width}: the page is ${wider} pixels too wide`);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document));
    for (const { id, nodes } of violations) {
      seen.problems.push(`${colorScheme}, ${width}, ${id}: ${nodes.map(({ html }) => html.slice(0, 160)).join(" | ")}`);
    }
  }
}
seen.heading = await page.textContent("h1");
seen.blank = await page.evaluate(() => [...document.images].filter((image) => !image.naturalWidth).map((image) => image.alt));
await browser.close();
process.stdout.write(JSON.stringify(seen));
