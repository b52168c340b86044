// SPDX-License-Identifier: Apache-2.0
// The running requests and the queue.
import { $, duration, number, setShare, setText } from "./format.js";

// A phone shows each as a card.
const shownAtMost = () => (matchMedia("(max-width: 720px)").matches ? 8 : 25);

function cell(text, label, className) {
  const element = document.createElement("td");
  if (label) element.dataset.label = label;
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function newRow() {
  const row = document.createElement("tr");
  const meter = cell("", "", "meter");
  const bar = document.createElement("div");
  const fill = document.createElement("i");
  bar.className = "bar";
  bar.setAttribute("role", "img");
  bar.append(fill);
  meter.append(bar);
  const cells = [
    cell("", "", "rid"),
    meter,
    ...["Logical", "Resident", "Budget", "Saved"].map((label) => cell("", label, "number")),
    cell("", "Policy"),
  ];
  row.append(...cells);
  return { row, cells, bar, fill };
}

export class Requests {
  constructor(pool) {
    this.body = $("requests").tBodies[0];
    this.rows = new Map();
    this.all = false;
    this.stats = null;
    $("more").addEventListener("click", () => {
      this.all = !this.all;
      this.render(this.stats);
    });
    this.body.addEventListener("pointerover", (event) => {
      const rid = event.target.closest("tr")?.dataset.rid;
      const found = this.stats?.requests.find((row) => row.rid === rid);
      if (found) {
        pool.say({ kind: found.kv_budget ? "budgeted" : "full", tokens: found.own_tokens, rid });
      }
    });
    this.body.addEventListener("pointerleave", () => pool.say(null));
  }

  render(stats) {
    this.stats = stats;
    const found = stats.requests;
    const most = shownAtMost();
    const shown = this.all ? found : found.slice(0, most);
    const longest = Math.max(1, ...found.map((row) => row.seq_len));
    const seen = new Set();
    for (const request of shown) {
      seen.add(request.rid);
      let entry = this.rows.get(request.rid);
      if (!entry) {
        entry = newRow();
        this.rows.set(request.rid, entry);
        this.body.append(entry.row);
      }
      this.fill(entry, request, longest);
    }
    for (const [rid, entry] of this.rows) {
      if (seen.has(rid)) continue;
      entry.row.remove();
      this.rows.delete(rid);
    }
    const prefilling = stats.prefilling.length;
    setText($("requests-note"), `${number(found.length)} running${prefilling ? `, ${number(prefilling)} in prefill` : ""}`);
    $("requests-empty").hidden = found.length > 0 || prefilling > 0;
    setText($("requests-empty"), "No request is running. This fills as soon as one is sent.");
    $("requests").hidden = found.length === 0;
    $("more").hidden = found.length <= most;
    setText($("more"), this.all ? "Show fewer" : `Show all ${number(found.length)}`);
    this.queue(stats);
  }

  /** The server is gone: nothing is said of now. */
  stop(time) {
    setText($("requests-empty"), `No request was running at ${time}.`);
  }

  fill({ row, cells, bar, fill }, request, longest) {
    row.dataset.rid = request.rid;
    const budgeted = request.kv_budget > 0;
    const saved = budgeted ? Math.max(0, request.seq_len - request.kv_len) : 0;
    setText(cells[0], request.rid);
    cells[0].title = request.rid;
    bar.className = budgeted ? "bar" : "bar full";
    // The track is the logical length, on the scale of the longest; the fill what is resident.
    setShare(bar, request.seq_len / longest);
    setShare(fill, request.kv_len / request.seq_len);
    bar.setAttribute("aria-label", `${request.kv_len} of ${request.seq_len} tokens resident`);
    setText(cells[2], number(request.seq_len));
    setText(cells[3], number(request.kv_len));
    setText(cells[4], budgeted ? number(request.kv_budget) : "full KV");
    setText(cells[5], saved ? `${Math.round((100 * saved) / request.seq_len)}%` : "–");
    setText(cells[6], budgeted ? request.kv_policy : "–");
  }

  queue(stats) {
    $("queue-part").hidden = stats.queued_requests === 0;
    const items = stats.queue.map((request) => {
      const item = document.createElement("li");
      const rid = document.createElement("span");
      rid.className = "rid";
      rid.textContent = request.rid;
      const facts = document.createElement("span");
      const budget = request.kv_budget ? `budget ${number(request.kv_budget)}` : "full KV";
      facts.textContent = `${number(request.prompt_tokens)} in, up to ${number(request.max_new_tokens)} out, ${budget}`;
      const waited = document.createElement("span");
      waited.className = "quiet";
      waited.textContent = `waits ${duration(request.waited_s)}`;
      item.append(rid, facts, waited);
      return item;
    });
    const left = stats.queued_requests - stats.queue.length;
    if (left > 0) {
      const item = document.createElement("li");
      item.textContent = `and ${number(left)} more`;
      items.push(item);
    }
    $("queue").replaceChildren(...items);
  }
}
