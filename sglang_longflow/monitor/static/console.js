// SPDX-License-Identifier: Apache-2.0
// Asks the server once a second and hands what it says to the parts of the page.
import { Charts } from "./charts.js";
import { $, clock, duration, modelName, number, setText } from "./format.js";
import { Pool } from "./pool.js";
import { Requests } from "./requests.js";
import { showSettings } from "./settings.js";
import { WhatIf } from "./plan.js";
import { Try } from "./try.js";

const POLL_MS = 1000;
const RETRY_MS = 3000;
// In a hidden tab for its title alone; an answer that the server's own history has asked for will do.
const HIDDEN_MS = 15000;
const HIDDEN_AGE_S = 15;
const PATIENCE_MS = 8000;
const GONE_MS = 30000; // without an answer: until then it may be busy, or the way to it
const KEY = "longflow-key";

const pool = new Pool();
const requests = new Requests(pool);
const whatIf = new WhatIf(ask);
const charts = new Charts(ask);
const trial = new Try(storedKey);
let timer = 0;
let last = null; // the last stats
let lastAt = null;
let goneSince = null;

function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** GET a data route: {status, body}; throws where the server cannot be reached. */
async function ask(path) {
  const key = storedKey();
  const response = await fetch(`longflow/${path}`, {
    headers: key ? { Authorization: `Bearer ${key}` } : {},
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const body = await response.json().catch(() => ({}));
  return { status: response.status, body };
}

const TITLES = { key: "key needed", gone: "gone" };

/** The state, in the header that stays in sight and in the tab's title. */
function show(state, text, brief = TITLES[state] ?? "") {
  const status = $("status");
  // To a screen reader once per state: what is seen counts seconds.
  if (status.dataset.state !== state) setText($("said"), text);
  status.dataset.state = $("main").dataset.state = $("header").dataset.state = state;
  setText(status, text);
  const model = last ? `${modelName(last.server.model)} - ` : "";
  const title = `${brief ? `${state === "busy" ? "●" : "✕"} ${brief} - ` : ""}${model}longflow`;
  if (document.title !== title) document.title = title;
  for (const element of document.querySelectorAll(".as-of")) {
    element.hidden = state !== "gone" || !last;
    if (last) setText(element, `as of ${clock(lastAt)}`);
  }
  if (state === "gone" && last) requests.stop(clock(lastAt));
}

function notice(text) {
  $("notice").hidden = !text;
  setText($("notice"), text);
}

function askForKey() {
  const form = $("key-form");
  const refused = storedKey() !== null;
  show("key", refused ? "Key refused" : "API key needed");
  setText(
    $("key-hint"),
    refused
      ? "The server refused this key. It is kept in this tab only."
      : "It is kept in this tab only, until the tab is closed.",
  );
  if (form.hidden) {
    form.hidden = false;
    $("key").focus();
  }
}

/** No answer: gone at once where the server says that its scheduler has ended. */
function silent(why, ended) {
  goneSince ??= new Date();
  const gone = ended || new Date() - goneSince >= GONE_MS;
  const seconds = Math.round((new Date() - goneSince) / 1000);
  if (gone) show("gone", `Gone: no answer since ${clock(goneSince)}`, `gone since ${clock(goneSince)}`);
  else show("busy", `No answer since ${clock(goneSince)}`, `no answer for ${seconds} s`);
  if (last) setText($("when"), `last answer ${clock(lastAt)}`);
  notice(gone
    ? `${why} ${last ? "What is shown is the last answer. " : ""}Trying again every ${RETRY_MS / 1000} seconds.`
    : "");
}

/** The server answers; what it says of the scheduler may be old, or nothing yet. */
function answered(stats) {
  goneSince = null;
  notice("");
  const known = stats.age_s !== null;
  if (known && stats.uptime_s !== last?.uptime_s) render(stats);
  if (known) lastAt = new Date(Date.now() - 1000 * (stats.age_s ?? 0));
  if (stats.state === "busy") {
    const age = known ? duration(stats.age_s) : "";
    show("busy", known ? `Busy: last answer ${age} ago` : "Busy: no answer yet", known ? `busy ${age}` : "busy");
  } else {
    show("live", "Live"); // the time is elsewhere: a screen reader would say it every second
  }
  if (known) setText($("when"), clock(lastAt));
}

function rates(stats) {
  const seconds = last ? stats.uptime_s - last.uptime_s : 0;
  if (seconds <= 0) return seconds < 0 ? null : rates.held;
  const rate = (name) => (stats.counters[name] - last.counters[name]) / seconds;
  rates.held = { decoded: rate("decoded_tokens"), overwritten: rate("overwritten_tokens") };
  return rates.held;
}
rates.held = null;

function tiles(stats) {
  const { sums, counters } = stats;
  setText($("running"), number(sums.running_requests));
  setText($("running-note"), `${number(sums.at_budget_requests)} at their budget`);
  const logical = stats.requests.reduce((sum, row) => sum + (row.kv_budget ? row.seq_len : 0), 0);
  setText($("saved"), number(sums.saved_tokens), "slots");
  const share = logical ? Math.round((100 * sums.saved_tokens) / logical) : 0;
  const none = sums.running_requests ? "no request has a budget" : "no request is running";
  setText($("saved-note"), logical ? `${share}% of what full KV would hold` : none);
  const rate = rates(stats);
  setText($("decoded"), rate ? number(Math.round(rate.decoded)) : "–", "tokens/s");
  setText($("decoded-note"), rate ? `${number(Math.round(rate.overwritten))} slots overwritten/s` : "\u00a0");
  setText($("waiting"), number(stats.queued_requests));
  const retracted = counters.retracted_budgeted_rows;
  setText($("waiting-note"), retracted ? `${number(retracted)} rows retracted` : "none retracted");
}

function render(stats) {
  setText($("model"), modelName(stats.server.model));
  $("model").title = stats.server.model;
  $("warning").hidden = !stats.settings.capacity_warning;
  setText($("warning"), stats.settings.capacity_warning ?? "");
  setText($("footer"), `sglang-longflow ${stats.server.longflow}`);
  tiles(stats);
  pool.render(stats);
  requests.render(stats);
  showSettings(stats);
  whatIf.start(stats);
  charts.start();
  trial.start(stats);
  last = stats;
}

async function poll() {
  clearTimeout(timer);
  let wait = POLL_MS;
  try {
    const { status, body } = await ask(document.hidden ? `stats?max_age_s=${HIDDEN_AGE_S}` : "stats");
    if (status === 401) {
      goneSince = null;
      notice("");
      askForKey();
      return; // until a key is given
    }
    $("key-form").hidden = true;
    if (status === 200) {
      answered(body);
    } else {
      silent(`The server answered ${status}: ${body.message ?? ""}.`, status === 503);
      wait = RETRY_MS;
    }
  } catch (error) {
    const unreachable = error instanceof TypeError || error.name === "TimeoutError";
    silent(unreachable ? "The server does not answer." : error.message, false);
    wait = RETRY_MS;
  }
  timer = setTimeout(poll, document.hidden ? HIDDEN_MS : wait);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  poll();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
poll();
