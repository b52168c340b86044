// SPDX-License-Identifier: Apache-2.0
// The Try tab: a prompt with a budget, beside full KV where the server allows it.
import { $, number, setText } from "./format.js";
import { curl, python, requestOf } from "./try_code.js";
import { Column, parting } from "./try_column.js";
import { Failure, stream } from "./try_stream.js";

const EXAMPLES = {
  "Reason": "A train leaves at 9:40 and travels 150 km at 60 km per hour. Then it waits for 25 minutes and travels 90 km at 45 km per hour. When does it arrive? Think step by step and check your answer.",
  "Remember": "Remember this code: 7413. First write ten sentences about the sea. Then write ten sentences about mountains. At the end, tell me the code.",
  "Story": "Write a story of 600 words about a lighthouse keeper who finds a letter in a bottle. Give every person a name, and use each name again in the last paragraph.",
  "Explain": "Explain how a bicycle stays upright, first to a child, then to a student of physics.",
};

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

export class Try {
  /** `storedKey` returns the API key or null. */
  constructor(storedKey) {
    this.storedKey = storedKey;
    this.running = null; // AbortController
    this.range = null; // {least, most}
    this.bytesPerToken = 0;
    this.same = 0;
    this.columns = ["budget", "full"].map((name) => {
      const root = $(`try-${name}`);
      root.append($("try-column").content.cloneNode(true));
      return new Column(root, () => this.draw());
    });
    const examples = Object.entries(EXAMPLES).map(([name, prompt]) => {
      const button = element("button", name);
      button.type = "button";
      button.addEventListener("click", () => {
        $("try-prompt").value = prompt;
        $("try-prompt").focus();
        this.showCode();
      });
      return button;
    });
    $("try-examples").append(...examples);
    $("try-prompt").value = EXAMPLES.Reason;
    $("try-slider").addEventListener("input", () => this.slid());
    $("try-tokens").addEventListener("input", () => this.typed());
    $("try-form").addEventListener("input", () => this.showCode());
    $("try-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    $("try-prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try-form").requestSubmit();
    });
    $("try-stop").addEventListener("click", () => this.running?.abort());
    document.addEventListener("tab", () => this.showCode());
    for (const name of ["curl", "python"]) {
      $(`copy-${name}`).addEventListener("click", () => this.copy(name));
    }
  }

  /** Once the server's settings are known, and again if another server stands behind them. */
  start(stats) {
    const { settings, server, pool } = stats;
    this.model = server.model;
    const known = JSON.stringify([settings, pool.total_tokens]);
    if (known === this.known) return;
    this.known = known;
    const total = pool.total_tokens / server.schedulers;
    const most = Math.max(settings.kv_budget_min, settings.kv_budget_max ?? total);
    this.range = { least: settings.kv_budget_min, most };
    this.bytesPerToken = settings.kv_pool_bytes / total;
    this.where = settings.device_memory_bytes ? " on each GPU" : "";
    setText($("try-least"), number(this.range.least));
    setText($("try-most"), number(most));
    $("try-slider").disabled = most <= this.range.least;
    const own = settings.kv_budget || Math.min(1024, Math.round(total / 8));
    this.setBudget(Math.min(Math.max(own, this.range.least), most));
    const policies = settings.kv_policies_allowed ?? [settings.kv_policy];
    $("try-policy").replaceChildren(...policies.map((name) => {
      const option = element("option", name === settings.kv_policy ? `${name} (default)` : name);
      option.value = name;
      return option;
    }));
    this.allowsFull = settings.kv_budget_allow_full || settings.kv_budget === 0;
    const box = $("try-both");
    box.disabled = !this.allowsFull;
    box.checked = this.allowsFull;
    $("try-both-why").hidden = this.allowsFull;
    $("try-run").disabled = false;
    this.showCode();
  }

  setBudget(tokens) {
    $("try-tokens").value = tokens;
    this.typed();
  }

  slid() {
    const { least, most } = this.range;
    $("try-tokens").value = Math.round(least * (most / least) ** (Number($("try-slider").value) / 1000));
    this.say();
  }

  typed() {
    const { least, most } = this.range;
    const share = most > least ? Math.log(Math.max($("try-tokens").value, least) / least) / Math.log(most / least) : 0;
    $("try-slider").value = 1000 * share;
    this.say();
  }

  say() {
    const tokens = Number($("try-tokens").value);
    const size = `${number((tokens * this.bytesPerToken) / 2 ** 20)} MiB`;
    setText($("try-size"), `${size} of KV cache${this.where}`);
    $("try-slider").setAttribute("aria-valuetext", `${tokens} tokens, ${size}`);
  }

  /** What a run sends with `budget` (0: full KV), by default the slider's. */
  request(budget = Number($("try-tokens").value)) {
    return requestOf({
      chat: $("try-chat").checked,
      model: this.model,
      prompt: $("try-prompt").value,
      budget,
      policy: $("try-policy").value,
      maxTokens: Number($("try-max").value),
      temperature: Number($("try-temperature").value),
    });
  }

  showCode() {
    if (!this.range) return;
    const hasKey = this.storedKey() !== null;
    const request = this.request();
    setText($("code-curl"), curl(request, document.baseURI, hasKey));
    setText($("code-python"), python(request, document.baseURI, hasKey));
    $("code-full").hidden = !$("try-both").checked;
  }

  async copy(name) {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText($(`code-${name}`).textContent);
    } catch {
      getSelection().selectAllChildren($(`code-${name}`));
      said = "Selected: press Ctrl+C";
    }
    setText($("try-said"), said);
  }

  async run() {
    if (this.running || !this.range) return;
    this.running = new AbortController();
    this.swap("try-stop", "try-run");
    this.showCode();
    this.same = 0;
    this.parted = false;
    for (const column of this.columns) column.clear();
    const both = $("try-both").checked;
    this.isCompared = both && Number($("try-temperature").value) === 0;
    this.both = both;
    $("try-answers").hidden = false;
    $("try-answers").classList.toggle("both", both);
    $("try-full").hidden = !both;
    setText($("try-said"), "");
    const request = this.request();
    const budget = request.body.custom_params.kv_budget;
    const [first, second] = this.columns;
    const asked = [this.ask(first, `A budget of ${number(budget)} tokens`, request)];
    if (both) asked.push(this.ask(second, "Full KV", this.request(0)));
    try {
      await Promise.all(asked);
    } finally {
      this.running = null;
      this.swap("try-run", "try-stop");
    }
    const shown = both ? this.columns : [first];
    const same = $("try-same").hidden ? [] : [$("try-same").textContent];
    setText($("try-said"), [...shown.map((column) => column.sentence()), ...same].join(" "));
  }

  /** Of Run and Stop one can be pressed; the keyboard's focus goes along. */
  swap(on, off) {
    const hadFocus = document.activeElement === $(off);
    $(on).disabled = false;
    $(off).disabled = true;
    if (hadFocus) $(on).focus();
  }

  async ask(column, title, { path, body }) {
    column.start(title, this.bytesPerToken);
    try {
      for await (const event of stream(path, body, this.storedKey(), this.running.signal)) column.push(event);
      column.end();
    } catch (error) {
      if (error.name === "AbortError") column.end("stopped");
      else if (error instanceof Failure) column.end("failed", error.message);
      else throw error;
    }
  }

  draw() {
    const shown = this.both ? this.columns : [this.columns[0]];
    const longest = Math.max(1, ...shown.map((column) => column.logical ?? 0));
    for (const column of shown) column.draw(longest);
    this.compare();
  }

  /** How far the two answers are the same; the first token that differs is marked, once. */
  compare() {
    const [one, other] = this.columns;
    const failed = [one, other].some((column) => column.finish === "failed");
    $("try-same").hidden = !this.both || failed;
    if (!this.both || failed) return;
    if (!this.isCompared) {
      setText($("try-same"), "Above temperature 0 each answer is drawn by chance: they are not compared.");
      return;
    }
    if (this.parted) return;
    const { same, parted, tokens } = parting(one, other, this.same);
    this.same = same;
    if (!parted) {
      const ended = one.done && other.done;
      setText($("try-same"), tokens ? `Same text ${ended ? "to the end" : "so far"}: ${number(tokens)} tokens.` : "\u00a0");
      return;
    }
    this.parted = true;
    for (const column of [one, other]) column.mark(same);
    setText($("try-same"), `Same text up to token ${number(tokens)}; what differs first is marked.`);
  }
}
