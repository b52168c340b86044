// SPDX-License-Identifier: Apache-2.0
// The slider: another budget in this pool, answered by the server's planner.
import { $, number, setShare, setText } from "./format.js";

const WAIT_MS = 150;
const LEAST = 38; // the planner's; a smaller one is refused by the server, by name

export class WhatIf {
  constructor(ask) {
    this.ask = ask;
    this.timer = 0;
    this.asked = 0;
    this.pool = 0;
    for (const id of ["budget", "prompt", "output"]) {
      $(id).addEventListener("input", () => this.changed());
    }
    $("plan-form").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Once the pool is known: the server's own budget, and what it buys. */
  start(stats) {
    const total = stats.pool.total_tokens / stats.server.schedulers;
    if (this.pool === total) return;
    this.pool = total;
    const own = stats.settings.kv_budget || Math.min(1024, Math.round(total / 8));
    $("budget").value = (1000 * Math.log(Math.max(own, LEAST) / LEAST)) / Math.log(total / LEAST);
    $("budget").disabled = false;
    $("prompt").value = Math.min(512, Math.max(1, Math.floor(own / 2)));
    $("output").value = Math.min(16384, Math.max(64, Math.floor(total / 2)));
    this.changed(own);
  }

  /** The slider is logarithmic, from the least budget to the whole pool. */
  get budget() {
    const share = Number($("budget").value) / 1000;
    return Math.round(LEAST * (this.pool / LEAST) ** share);
  }

  changed(exact = null) {
    const budget = exact ?? this.budget;
    setText($("budget-out"), number(budget));
    $("budget").setAttribute("aria-valuetext", `${budget} tokens`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(budget), WAIT_MS);
  }

  async refresh(budget) {
    const turn = ++this.asked;
    const query = new URLSearchParams({
      budget,
      prompt_tokens: $("prompt").value,
      output_tokens: $("output").value,
    });
    let answer;
    try {
      answer = await this.ask(`plan?${query}`);
    } catch {
      answer = { status: 0, body: { message: "The server does not answer." } };
    }
    if (turn !== this.asked) return; // the slider has moved on
    const failed = answer.status !== 200;
    $("plan-error").hidden = !failed;
    $("plan").hidden = failed;
    if (failed) setText($("plan-error"), answer.body.message ?? `The server answered ${answer.status}.`);
    else this.show(answer.body);
  }

  show(plan) {
    const most = Math.max(plan.rows_budget, plan.rows_full, 1);
    setText($("rows-budget"), `${number(plan.rows_budget)} at once`);
    setText($("rows-full"), `${number(plan.rows_full)} at once`);
    setShare($("bar-budget"), plan.rows_budget / most);
    setShare($("bar-full"), plan.rows_full / most);
    setText($("verdict"), plan.verdict.charAt(0).toUpperCase() + plan.verdict.slice(1));
    const times = (value) => (value === null ? "–" : `${value.toFixed(2)}x`);
    const speed = (value) => (value === null ? null : `about ${number(Math.round(value))} tokens/s`);
    const each = plan.tp > 1 ? " a GPU" : "";
    const mib = (tokens) => `${number((tokens * plan.kv_bytes_per_token) / 2 ** 20)} MiB${each}`;
    const facts = {
      "Concurrency": times(plan.concurrency_gain),
      "Throughput, estimated": times(plan.throughput_gain),
      "Speed with the budget": speed(plan.budget_tokens_per_s),
      "Speed with full KV": speed(plan.full_tokens_per_s),
      "A request takes": `${number(plan.budget_row_tokens)} slots, ${mib(plan.budget_row_tokens)}`,
      "With full KV it ends with": `${number(plan.full_final_tokens)} slots, ${mib(plan.full_final_tokens)}`,
      "Gains begin beyond": `${number(plan.break_even_output_tokens)} output tokens`,
      "Quality": plan.quality,
      "Note": plan.notes.join("; ") || null,
    };
    $("plan-facts").replaceChildren(
      ...Object.entries(facts)
        .filter(([, value]) => value !== null)
        .map(([name, value]) => {
          const part = document.createElement("div");
          const term = document.createElement("dt");
          const text = document.createElement("dd");
          term.textContent = name;
          text.textContent = value;
          if (name === "Note" || name === "Quality") part.className = "whole";
          part.append(term, text);
          return part;
        }),
    );
  }
}
