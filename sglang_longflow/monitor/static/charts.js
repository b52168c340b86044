// SPDX-License-Identifier: Apache-2.0
// What the server did over time, out of its own history: a reload loses nothing.
import { $, clock, latency, make, number, rough, setText, short } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100; // of a chart's coordinates
const EDGE = 4; // above and below a line, so that it is seen at both ends of its scale
const LEAST_VALUES = 24; // in sight, of a server that is younger than what is asked for
const SPANS = { 600: 5, 3600: 30, 86400: 600 }; // seconds back: seconds per value
const REFRESH_S = [5, 60];
const KEY = "longflow-span";
const perSecond = (value) => `${rough(value)}/s`;
const line = (column, label) => ({ column, label });

const CHARTS = [
  {
    title: "Tokens per second", format: perSecond,
    series: [line("decoded_tokens_per_s", "decoded"), line("overwritten_tokens_per_s", "slots overwritten")],
  },
  {
    title: "Requests", format: rough,
    series: [line("running_requests", "running"), line("queued_requests", "waiting")],
  },
  {
    title: "Time to first token", format: latency,
    series: [line("time_to_first_token_p50_s", "median"), line("time_to_first_token_p95_s", "95%")],
  },
  {
    title: "Time between tokens", format: latency,
    series: [line("inter_token_p50_s", "median"), line("inter_token_p95_s", "95%")],
  },
  {
    title: "KV pool", format: (value) => `${rough(value)} slots`, stacked: true,
    series: [
      line("budgeted_tokens", "with a budget"), line("full_kv_tokens", "full KV"),
      line("prefill_tokens", "in prefill"), line("tree_held_tokens", "prefix cache, in use"),
      line("evictable_tokens", "prefix cache, evictable"),
    ],
    kinds: ["budgeted", "full", "prefill", "held", "evictable"],
  },
];

/** The least of 1, 2, 5 times a power of ten that is at least `value`. */
export function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value) + 1e-9);
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value * (1 - 1e-9));
}

/** Stretches of values without a null: [[first, values], ...]. */
export function runs(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (i > 0 && values[i - 1] !== null) found.at(-1)[1].push(value);
    else found.push([i, [value]]);
  });
  return found;
}

/** A time of the server's; with its day where a span is long enough for two. */
function moment(t, span, seconds) {
  const date = new Date(1000 * t);
  const time = seconds ? clock(date) : clock(date).slice(0, 5);
  return span < 86400 ? time : `${date.toLocaleDateString("en-GB", { weekday: "short" })} ${time.slice(0, 5)}`;
}

function path(className) {
  const element = document.createElementNS(SVG, "path");
  element.setAttribute("class", className);
  return element;
}

/** One chart: its picture, a key with values, and a point that keys and pointer move. */
class Chart {
  constructor({ title, format, series, stacked = false, kinds = [] }, moved) {
    Object.assign(this, { title, format, series, stacked });
    this.values = series.map(() => make("b"));
    const keys = series.map(({ label }, i) =>
      make("li", "", "", [make("i", stacked ? kinds[i] : `line-${i}`), make("span", "", label), this.values[i]]));
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true");
    this.gaps = path("gaps");
    this.grid = path("grid");
    this.lines = series.map((_, i) => path(stacked ? `area ${kinds[i]}` : `line line-${i}`));
    this.cross = path("cross");
    // Areas are drawn from the highest to the lowest: each hides the foot of the one above it.
    this.svg.append(this.gaps, ...(stacked ? [...this.lines].reverse() : this.lines), this.grid, this.cross);
    this.top = make("span", "top");
    this.plot = make("div", "plot", "", [this.svg, this.top]);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "slider");
    this.plot.setAttribute("aria-label", `${title} over time`);
    this.plot.setAttribute("aria-valuemin", "0");
    this.missing = make("p", "empty");
    this.missing.hidden = true;
    this.ends = [make("span"), make("span")];
    this.element = make("figure", stacked ? "chart whole" : "chart", "", [
      make("figcaption", "", "", [make("h3", "", title), make("ul", "keys", "", keys)]),
      this.plot, this.missing, make("p", "axis quiet small", "", this.ends),
    ]);
    this.plot.addEventListener("pointermove", (event) => {
      const box = this.plot.getBoundingClientRect();
      moved(Math.floor(((event.clientX - box.left) / box.width) * this.count));
    });
    this.plot.addEventListener("pointerleave", () => moved(null));
    this.plot.addEventListener("blur", () => moved(null));
    this.plot.addEventListener("keydown", (event) => {
      const at = this.at ?? this.count - 1;
      const to = {
        ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
        PageDown: at - 10, PageUp: at + 10, Home: 0, End: this.count - 1, Escape: null,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      moved(to);
    });
  }

  count = 0;
  at = null;

  render(history, say) {
    const { columns, missing, pool_tokens: pool } = history;
    const reason = this.series.map(({ column }) => missing[column]).find(Boolean);
    this.plot.hidden = this.ends[0].parentElement.hidden = Boolean(reason);
    this.missing.hidden = !reason;
    if (reason) {
      setText(this.missing, `Not measured: ${reason}`);
      return;
    }
    this.count = history.t.length;
    this.say = say;
    const nothing = Array(this.count).fill(null);
    this.columns = this.series.map(({ column }) => columns[column] ?? nothing);
    let tops = this.columns;
    if (this.stacked) {
      let below = Array(this.count).fill(0);
      tops = this.columns.map((column) => (below = column.map((v, i) => (v === null ? null : v + below[i]))));
    }
    const most = this.stacked ? pool ?? 1 : niceTop(Math.max(0, ...tops.flat().filter((v) => v !== null)));
    setText(this.top, this.stacked ? short(most) : this.format(most));
    this.svg.setAttribute("viewBox", `0 0 ${this.count} ${HEIGHT}`);
    tops.forEach((column, i) => this.lines[i].setAttribute("d", this.draw(column, most)));
    this.grid.setAttribute("d", `M0,${HEIGHT / 2}H${this.count}M0,0H${this.count}`);
    this.gaps.setAttribute("d", gapsOf(columns.running_requests));
    const end = Math.min(history.t.at(-1) + history.step_s, history.now);
    [history.t[0], end].forEach((t, i) => setText(this.ends[i], moment(t, history.span_s, false)));
    this.plot.setAttribute("aria-valuemax", String(this.count - 1));
    this.point(this.at);
  }

  draw(values, most) {
    const edge = this.stacked ? 0 : EDGE;
    const y = (value) => (edge + (HEIGHT - 2 * edge) * (1 - Math.min(1, value / most))).toFixed(2);
    return runs(values).map(([first, run]) => {
      // From the left edge of the first interval to the right edge of the last: one value is seen too.
      const points = [`${first},${y(run[0])}`, ...run.map((v, i) => `${first + i + 0.5},${y(v)}`),
        `${first + run.length},${y(run.at(-1))}`].join("L");
      return this.stacked ? `M${first},${HEIGHT}L${points}V${HEIGHT}Z` : `M${points}`;
    }).join("");
  }

  /** Mark a place and tell its values; the newest without a mark. */
  point(at) {
    this.at = at;
    if (!this.count) return;
    const place = at ?? this.count - 1;
    const told = this.columns.map((column) => (column[place] === null ? "–" : this.format(column[place])));
    told.forEach((text, i) => setText(this.values[i], text));
    this.cross.setAttribute("d", at === null ? "" : `M${at + 0.5},0V${HEIGHT}`);
    this.plot.setAttribute("aria-valuenow", String(place));
    this.plot.setAttribute(
      "aria-valuetext",
      `${this.say(place)}: ${this.series.map(({ label }, i) => `${label} ${told[i] === "–" ? "no value" : told[i]}`).join(", ")}`,
    );
  }
}

/** A band over each stretch without an answer, from the first answer on. */
function gapsOf(running) {
  const first = running.findIndex((value) => value !== null);
  if (first < 0) return "";
  const silent = running.map((value, i) => (value === null && i > first ? 1 : null));
  return runs(silent).map(([from, run]) => `M${from},0h${run.length}v${HEIGHT}h-${run.length}z`).join("");
}

/** Without what lies before the server's first reading, unless too little is left to see. */
function sinceStart(history) {
  const first = history.columns.running_requests.findIndex((value) => value !== null);
  const start = Math.max(0, Math.min(first, history.t.length - LEAST_VALUES));
  const columns = Object.entries(history.columns).map(([name, values]) => [name, values.slice(start)]);
  return { ...history, t: history.t.slice(start), columns: Object.fromEntries(columns) };
}

export class Charts {
  constructor(ask) {
    this.ask = ask;
    this.timer = 0;
    this.asked = 0;
    this.span = 600;
    this.at = null;
    try {
      const kept = Number(sessionStorage.getItem(KEY));
      if (kept in SPANS) this.span = kept;
    } catch {
      // storage may be off
    }
    this.charts = CHARTS.map((chart) => new Chart(chart, (at) => this.point(at)));
    $("charts").append(...this.charts.map((chart) => chart.element));
    this.buttons = [...$("spans").querySelectorAll("button")];
    for (const button of this.buttons) {
      button.addEventListener("click", () => this.choose(Number(button.dataset.span)));
    }
    this.press();
    $("values-part").addEventListener("toggle", () => this.table());
    document.addEventListener("visibilitychange", () => {
      if (this.timer) this.refresh();
    });
  }

  press() {
    for (const button of this.buttons) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.span) === this.span));
    }
  }

  choose(span) {
    this.span = span;
    try {
      sessionStorage.setItem(KEY, String(span));
    } catch {
      // it then lasts as long as the page
    }
    this.press();
    this.point(null);
    if (this.timer) this.refresh();
  }

  /** Called with the server's first answer; from then on by itself, while the page is seen. */
  start() {
    if (!this.timer) this.refresh();
  }

  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const turn = ++this.asked;
    const step = SPANS[this.span];
    try {
      const { status, body } = await this.ask(`history?span_s=${this.span}&step_s=${step}`);
      if (turn !== this.asked) return;
      if (status === 401) {
        this.timer = 0; // until the page has a key, and an answer
        return;
      }
      if (status === 200) this.render(body);
      else setText($("charts-note"), `No history: ${body.message ?? `the server answered ${status}`}`);
    } catch {
      // The header says that there is no answer; the charts end where the last one did.
    }
    if (turn !== this.asked) return;
    const wait = Math.min(Math.max(step, REFRESH_S[0]), REFRESH_S[1]);
    this.timer = setTimeout(() => this.refresh(), 1000 * wait);
  }

  render(whole) {
    const history = (this.history = sinceStart(whole));
    $("to-metrics").hidden = Object.keys(history.missing).length > 0;
    for (const chart of this.charts) chart.render(history, (place) => this.time(place));
    this.point(this.at === null ? null : Math.min(this.at, history.t.length - 1));
    this.table();
  }

  time(place) {
    return moment(this.history.t[place], this.history.span_s, true);
  }

  point(at) {
    if (!this.history) return;
    this.at = at === null ? null : Math.max(0, Math.min(this.history.t.length - 1, at));
    for (const chart of this.charts) chart.point(this.at);
    const refused = this.history.columns.refused_requests;
    const count = refused.reduce((sum, value) => sum + (value ?? 0), 0);
    const each = this.history.step_s < 60 ? `${this.history.step_s} s` : `${this.history.step_s / 60} min`;
    const silent = gapsOf(this.history.columns.running_requests) ? "; shaded: the scheduler gave no answer" : "";
    setText($("charts-note"), this.at === null
      ? `A value per ${each}${silent}. ${count ? `${number(count)} requests refused for their budget.` : ""}`
      : `At ${this.time(this.at)}${refused[this.at] ? `: ${number(refused[this.at])} requests refused for their budget` : ""}`);
  }

  /** The newest first, built only while it is open. */
  table() {
    if (!$("values-part").open || !this.history) return;
    const { t, columns } = this.history;
    const series = this.charts.flatMap((chart) => chart.series.map((one) => ({ ...one, chart })))
      .filter(({ column }) => column in columns);
    const heads = ["Time", ...series.map(({ chart, label }) => `${chart.title}, ${label}`)];
    const head = make("thead", "", "", [make("tr", "", "", heads.map((text) => {
      const cell = make("th", "", text);
      cell.scope = "col";
      return cell;
    }))]);
    const rows = t.map((_, i) => make("tr", "", "", [
      make("td", "", this.time(i)),
      ...series.map(({ column, chart }) =>
        make("td", "number", columns[column][i] === null ? "–" : chart.format(columns[column][i]))),
    ]));
    $("values").replaceChildren(head, make("tbody", "", "", rows.reverse()));
  }
}
