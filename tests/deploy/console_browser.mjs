// SPDX-License-Identifier: Apache-2.0
// Drives the console in headless Chromium and reports what it saw, one JSON object a line.
// It stops at {"at": NAME} until a line comes back: the test then starts requests or ends the server.
//   node console_browser.mjs MODULES SERVER RELAY KEY FOLDER
import { mkdtempSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [modules, server, relay, key, folder] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update",
];
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (facts) => console.log(JSON.stringify(facts));
async function stopAt(name) {
  say({ at: name });
  await lines.next();
}

const seen = { errors: [], dialogs: 0, outside: [] };
async function browser(options) {
  const context = await chromium.launchPersistentContext(mkdtempSync(join(tmpdir(), "chromium-")), {
    executablePath: "/usr/bin/chromium", headless: true, args: FLAGS,
    viewport: { width: 1200, height: 900 }, colorScheme: "light", ...options,
  });
  context.setDefaultTimeout(300000);
  return context;
}
async function open(context, url, expected = /^$/) {
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && !expected.test(message.text())) seen.errors.push(message.text());
  });
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("dialog", (dialog) => { seen.dialogs += 1; dialog.dismiss(); });
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) seen.outside.push(request.url());
  });
  await page.goto(`${url}/longflow`);
  return page;
}
const text = (page, selector) => page.locator(selector).innerText();
const state = (page, name) => page.waitForSelector(`#status[data-state="${name}"]`);
const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

// The page of the server itself; the header stands in for a proxy that adds the key.
const watching = await browser({ extraHTTPHeaders: { Authorization: `Bearer ${key}` } });
let hold;
const held = new Promise((resolve) => { hold = resolve; });
await watching.route("**/longflow/stats", async (route) => { await held; await route.continue(); });
const page = await open(watching, server, /status of 400|net::ERR_/);
say({ loading: await text(page, "#status"), loading_state: await page.getAttribute("#main", "data-state") });
hold();
await state(page, "live");
say({ empty: await page.isVisible("#requests-empty"), empty_running: await text(page, "#running"),
  live_title: await page.title() });

// The Try tab, by keyboard, while nothing else runs.
const said = (on) => on.waitForFunction(() => document.getElementById("try-said").textContent !== "", null, { timeout: 300000 });
const fields = async (on, values) => {
  for (const [name, value] of Object.entries(values)) await on.fill(`#try-${name}`, String(value));
};
async function run(on) {
  await on.press("#try-prompt", "Control+Enter");
  await said(on); // starting has emptied it
}
const columns = (on) => on.evaluate(() => Object.fromEntries(["budget", "full"].map((name) => {
  const root = document.getElementById(`try-${name}`);
  const facts = [...root.querySelectorAll("[data-part]")].map((item) => [item.dataset.part, item.textContent]);
  const [bar, fill] = ["bar", "bar > i"].map((part) => root.querySelector(`.${part}`).getBoundingClientRect().width);
  return [name, { ...Object.fromEntries(facts), bar, fill, hidden: root.hidden,
    marked: [...root.querySelectorAll(".parted")].map((item) => item.textContent),
    thought: [...root.querySelectorAll(".thought")].map((item) => item.textContent).join(""),
    images: root.querySelectorAll("img").length }];
})));
const trial = {};
await page.focus("#to-watch");
await page.keyboard.press("ArrowRight");
trial.tab = await page.evaluate(() => [document.activeElement.id, location.hash, document.getElementById("tab-watch").hidden]);
trial.unnamed = await page.evaluate(() => [...document.querySelectorAll("#tab-try :is(input, select, textarea, button, pre)")]
  .filter((item) => !(item.labels?.length || item.ariaLabel || item.getAttribute("aria-labelledby") || item.tagName === "BUTTON"))
  .map((item) => item.id));
trial.start = await page.evaluate(() => ["tokens", "size", "least", "most"].map((name) =>
  document.getElementById(`try-${name}`).value ?? document.getElementById(`try-${name}`).textContent));
trial.policies = await page.locator("#try-policy option").allInnerTexts();
await page.evaluate(() => { // what the bars said on their way
  window.seenBars = new Set();
  const look = () => window.seenBars.add(document.querySelector("#try-budget .bar").ariaLabel ?? "");
  new MutationObserver(look).observe(document.getElementById("try-budget"), { subtree: true, attributes: true });
});
const PROMPT = "It's a \"long\" way, & $HOME\nis far. \\ é 🦊";
await fields(page, { prompt: PROMPT, tokens: 64, max: 150 });
await run(page);
trial.answers = await columns(page);
trial.said = await text(page, "#try-said");
trial.same = await text(page, "#try-same");
trial.bars = await page.evaluate(() => [...window.seenBars]);
await page.screenshot({ path: join(folder, "console-try.png") });
await page.setViewportSize({ width: 390, height: 844 });
trial.phone = await page.evaluate(() => document.documentElement.scrollWidth);
await page.screenshot({ path: join(folder, "console-try-phone.png") });
await page.setViewportSize({ width: 1200, height: 900 });
await page.check("text=plain text");
await run(page);
trial.plain = await columns(page);
await page.check("#try-chat");
await fields(page, { tokens: 5 });
await run(page);
trial.refused = (await columns(page)).budget.error;
trial.full_although = (await columns(page)).full.finish;
await fields(page, { tokens: 64, max: 2500 });
await page.press("#try-prompt", "Control+Enter");
await page.waitForFunction(() =>
  Number(document.querySelector('#try-full [data-part="tokens"]').textContent.replace(/\D/g, "")) > 5);
await page.click("#try-stop");
await said(page);
trial.stopped = await columns(page);
const ask = (path) => page.evaluate(async (path) => (await fetch(path)).json(), path);
trial.running_after = null;
for (let i = 0; i < 100 && trial.running_after !== 0; i++) {
  trial.running_after = (await ask("longflow/stats?max_age_s=0")).requests.length;
  await page.waitForTimeout(100);
}
// Answers as no model gives them at will.
const chunk = (tokens, delta, finish = null, metadata = {}) => `data: ${JSON.stringify({
  choices: [{ index: 0, delta, finish_reason: finish }], usage: { prompt_tokens: 3, completion_tokens: tokens },
  metadata: { kv_budget: 2, kv_resident_tokens: 2, kv_overwritten_tokens: tokens, kv_cut_tokens: 0, ...metadata } })}\n\n`;
const EVIL = '<img src="x" onerror="alert(1)">';
let broken = false;
await watching.route("**/v1/chat/completions", (route) => {
  const full = route.request().postDataJSON().custom_params.kv_budget === 0;
  const head = chunk(1, { reasoning_content: "hm " }) + chunk(2, { content: EVIL }) + chunk(3, { content: " a" });
  const tail = full ? chunk(4, { content: " b" }, "stop") : chunk(4, { content: " c" }, "length");
  route.fulfill({ contentType: "text/event-stream", body: head + tail + (broken ? "" : "data: [DONE]\n\n") });
});
await fields(page, { max: 150 });
await run(page);
trial.made_up = await columns(page);
trial.made_up_same = await text(page, "#try-same");
await page.fill("#try-temperature", "0.7");
await run(page);
trial.drawn = { same: await text(page, "#try-same"), marked: (await columns(page)).full.marked };
broken = true;
await run(page);
trial.broken = (await columns(page)).full.error;
await watching.unroute("**/v1/chat/completions");
await watching.route("**/longflow/stats", async (route) => {
  const response = await route.fetch();
  const stats = await response.json();
  stats.settings.kv_budget_allow_full = false;
  await route.fulfill({ response, json: stats });
});
await page.waitForSelector("#try-both:disabled");
trial.no_full = [await page.isChecked("#try-both"), await text(page, "#try-both-why")];
await watching.unroute("**/longflow/stats");
await page.click("#to-watch");
say({ trial });

// The same through the page of `longflow console`, which knows the key.
const trying = await browser({});
const tried = await open(trying, relay, /401/);
await tried.fill("#key", key);
await tried.keyboard.press("Enter");
await tried.click("#to-try");
await fields(tried, { prompt: PROMPT, tokens: 64, max: 90 });
await run(tried);
const code = {};
for (const name of ["curl", "python"]) code[`chat_${name}`] = await text(tried, `#code-${name}`);
const relayed = { chat: (await columns(tried)).budget };
await tried.check("text=plain text");
for (const name of ["curl", "python"]) code[`plain_${name}`] = await text(tried, `#code-${name}`);
await run(tried);
relayed.plain = (await columns(tried)).budget;
await trying.close();
say({ code, relayed });
await stopAt("code");

await stopAt("load");
// Until all that is reported of the rows is there at once; two of them, with full KV, end before the others.
const rowsSeen = () => page.evaluate(() => {
  const count = (start) => document.querySelectorAll(`#cells i[class^="${start}"]`).length;
  const numbers = (items) => [...items].map((item) => Number(item.textContent.replaceAll(",", "")));
  return {
    rows: [...document.querySelectorAll("#requests tbody tr")].map((row) =>
      [...row.cells].filter((cell) => !cell.classList.contains("meter")).map((cell) => cell.textContent)),
    scripts_in_table: document.querySelectorAll("#requests script").length,
    cells: { budgeted: count("budgeted"), full: count("full"), free: count("free"),
      all: document.querySelectorAll("#cells i").length },
    legend: numbers(document.querySelectorAll("#legend li:not([hidden]) b")),
    settings: document.querySelectorAll("#settings div").length,
    settings_text: Object.fromEntries([...document.querySelectorAll("#settings div, #totals div")].map((part) =>
      [part.querySelector("dt").textContent, part.querySelector("dd").textContent])),
    tabs: { panel: document.getElementById("tab-watch").role, selected: document.getElementById("to-watch").ariaSelected,
      labelled: document.getElementById("tab-watch").getAttribute("aria-labelledby") === "to-watch" },
    queue: document.querySelectorAll("#queue li").length,
    model: document.getElementById("model").textContent,
    saved: parseInt(document.getElementById("saved").textContent),
  };
});
const isWhole = ({ rows, queue, saved, cells }) => saved > 0 && queue > 0 && cells.full > 0 && cells.budgeted > 100
  && rows.some((row) => row[0].startsWith("<script>") && row[2] === "96") && rows.some((row) => row[3] === "full KV");
let rows = await rowsSeen();
for (let i = 0; i < 600 && !isWhole(rows); i++) {
  await page.waitForTimeout(200);
  rows = await rowsSeen();
}
say(rows);

// Charts: the server's own readings, at the keyboard, as a table, and after a reload.
const drawn = () => page.evaluate(() => [...document.querySelectorAll(".plot:not([hidden]) svg")].filter((svg) =>
  [...svg.querySelectorAll(".line, .area")].some((path) => path.getAttribute("d"))).length);
const value = (name) => page.getAttribute('.plot[aria-label="Requests over time"]', name);
await page.waitForFunction((rows) => [...document.querySelectorAll(".chart")][1].querySelector("b").textContent === rows, "12");
await page.waitForFunction(() => [...document.querySelectorAll(".chart")].every((chart) =>
  [...chart.querySelectorAll(".line, .area")].some((path) => path.getAttribute("d"))));
const charts = { drawn: await drawn(), keys: {}, ...(await page.evaluate(() => ({
  titles: [...document.querySelectorAll(".chart h3")].map((title) => title.textContent),
  missing: document.querySelectorAll(".chart > .empty:not([hidden])").length,
  running: document.querySelectorAll(".chart")[1].querySelector("b").textContent,
}))) };
await page.focus('.plot[aria-label="Requests over time"]');
charts.keys.newest = await value("aria-valuetext");
await page.keyboard.press("ArrowLeft");
charts.keys.before = await value("aria-valuetext");
charts.keys.marked = await page.locator('.cross[d^="M"]').count();
await page.keyboard.press("Home");
charts.keys.first = await value("aria-valuetext");
await page.keyboard.press("Escape");
charts.keys.after_escape = await page.locator('.cross[d^="M"]').count();
await page.click("#values-part summary");
await page.waitForSelector("#values tbody tr");
charts.values = await page.locator("#values tbody tr").count();
await page.click("#values-part summary");
const points = () => page.evaluate(() => document.querySelectorAll(".chart")[1].querySelector(".line").getAttribute("d").split(",").length);
charts.points = [await points()];
await page.reload();
await page.waitForFunction(() => [...document.querySelectorAll(".plot:not([hidden]) svg")].filter((svg) =>
  [...svg.querySelectorAll(".line, .area")].some((path) => path.getAttribute("d"))).length >= 5);
charts.points.push(await points()); // from the server: a page of its own readings has hardly one
charts.after_reload = await drawn();
await page.click('[data-span="3600"]');
await page.waitForFunction(() => !document.getElementById("charts-note").textContent.includes("per 5 s"));
charts.hour = [await page.getAttribute('[data-span="3600"]', "aria-pressed"),
  1 + Number(await value("aria-valuemax"))];
await page.click('[data-span="600"]');
say({ charts });
await page.waitForSelector("#plan:not([hidden])");

const rowsAtBudget = () => text(page, "#rows-budget");
const plan = { start: await rowsAtBudget(), budget: await text(page, "#budget-out") };
await page.focus("#budget");
await page.keyboard.press("End");
await page.waitForFunction((before) => document.getElementById("rows-budget").textContent !== before, plan.start);
plan.whole_pool = await rowsAtBudget();
plan.whole_budget = await text(page, "#budget-out");
await page.keyboard.press("Home");
await page.waitForFunction((before) => document.getElementById("rows-budget").textContent !== before, plan.whole_pool);
plan.least = await rowsAtBudget();
plan.verdict = await text(page, "#verdict");
await page.fill("#prompt", "99999999");
await page.waitForSelector("#plan-error:not([hidden])");
plan.error = await text(page, "#plan-error");
await page.fill("#prompt", "48");
await page.waitForSelector("#plan:not([hidden])");
await page.focus("#budget");
for (let i = 0; i < 24; i++) await page.keyboard.press("PageUp");
for (let i = 0; i < 20; i++) await page.keyboard.press("PageDown");
await page.waitForTimeout(400);
say({ plan });

const themes = { light: await background(page) };
await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
await page.screenshot({ path: join(folder, "console-light.png") });
await page.emulateMedia({ colorScheme: "dark" });
themes.dark = await background(page);
await page.waitForTimeout(400);
await page.screenshot({ path: join(folder, "console-dark.png") });
await page.click("#theme"); // light, against the system
themes.chosen_light = await background(page);
await page.click("#theme"); // dark
await page.emulateMedia({ colorScheme: "light" });
themes.chosen_dark = await background(page);
await page.click("#theme"); // as the system
themes.system = await background(page);
say({ themes });

await page.setViewportSize({ width: 390, height: 844 });
await page.waitForTimeout(1200);
say({ phone: await page.evaluate(() => ({ width: innerWidth, scroll: document.documentElement.scrollWidth,
  widest: Math.max(...[...document.querySelectorAll("main *, header *")].map((item) => item.getBoundingClientRect().right)) })) });
await page.screenshot({ path: join(folder, "console-phone.png") });
await page.setViewportSize({ width: 1200, height: 900 });

// The page of `longflow console`, which asks for the key.
const asking = await browser({});
const asked = await open(asking, relay, /401/);
await state(asked, "key");
const keys = { asked: await text(asked, "#status"), focus: await asked.evaluate(() => document.activeElement.id) };
await asked.screenshot({ path: join(folder, "console-key.png") });
await asked.fill("#key", "wrong-key");
await asked.keyboard.press("Enter");
await asked.waitForFunction(() => document.getElementById("status").textContent === "Key refused");
keys.refused = await text(asked, "#key-hint");
await asked.fill("#key", key);
await asked.keyboard.press("Enter");
await state(asked, "live");
await asked.waitForFunction(() => document.querySelectorAll("#requests tbody tr").length >= 4);
keys.stored = await asked.evaluate(() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]);
keys.form_hidden = await asked.isHidden("#key-form");
const other = await open(asking, relay, /401/);
await state(other, "key");
keys.other_tab = await text(other, "#status");
say({ keys });
await asking.close();

// A scheduler in one long step, of which the server knows something, or nothing yet.
const busy = {};
const tell = (changes) => watching.route("**/longflow/stats", async (route) => {
  const response = await route.fetch();
  await route.fulfill({ response, json: { ...(await response.json()), state: "busy", ...changes } });
});
await tell({ age_s: 7.2 });
await page.waitForFunction(() => document.getElementById("status").textContent === "Busy: last answer 7 s ago");
busy.state = await page.getAttribute("#status", "data-state");
busy.colour = await page.evaluate(() => getComputedStyle(document.getElementById("status")).color);
busy.rows = await page.locator("#requests tbody tr").count();
busy.notice = await page.isVisible("#notice");
busy.title = await page.title();
busy.said = await page.textContent("#said");
await page.evaluate(() => scrollTo(0, 600));
busy.scrolled = await page.evaluate(() => scrollY);
busy.header = await page.evaluate(() => {
  const box = document.getElementById("status").getBoundingClientRect();
  const seen = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  return [document.getElementById("header").getBoundingClientRect().top, seen === document.getElementById("status")];
});
await page.screenshot({ path: join(folder, "console-busy.png") });
await page.evaluate(() => scrollTo(0, 0));
await tell({ age_s: null, pool: null, sums: null, counters: null, settings: null, uptime_s: null,
  queued_requests: null, tree_held_tokens: null, requests: [], prefilling: [], queue: [] });
await page.waitForFunction(() => document.getElementById("status").textContent === "Busy: no answer yet");
busy.rows_then = await page.locator("#requests tbody tr").count();
await watching.unroute("**/longflow/stats");
await state(page, "live");
say({ busy });

await stopAt("gone");
await state(page, "busy"); // it may be busy: amber for 30 s
say({ silent: await text(page, "#status"), silent_title: await page.title() });
await page.waitForSelector('#status[data-state="gone"]', { timeout: 60000 });
say({ gone: await text(page, "#status"), gone_when: await text(page, "#when"), gone_notice: await text(page, "#notice"),
  gone_title: await page.title(), gone_text: await text(page, "#main"),
  gone_as_of: await page.locator(".as-of:visible").evaluateAll((items) => items.map((item) => item.textContent)),
  gone_rows: await page.locator("#requests tbody tr").count() });
await page.screenshot({ path: join(folder, "console-gone.png") });
await watching.close();
say(seen);
process.exit(); // the open input would keep it waiting
