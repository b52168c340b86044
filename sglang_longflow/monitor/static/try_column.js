// SPDX-License-Identifier: Apache-2.0
// One answer as it streams: its text, what is resident of its length, and its speed.
import { number, setShare, setText } from "./format.js";

const ENDS = {
  stop: "ended by the model",
  length: "cut at max tokens",
  abort: "aborted by the server",
  stopped: "stopped here",
  failed: "ended by an error",
};
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

export class Column {
  /** `onPush` is called after every event. */
  constructor(root, onPush) {
    this.root = root;
    this.onPush = onPush;
    this.part = (name) => root.querySelector(`[data-part="${name}"]`);
    this.clear();
  }

  clear() {
    this.pieces = []; // {end, before: tokens before it, node}
    this.text = "";
    this.tokens = this.promptTokens = 0;
    this.resident = this.logical = null;
    this.sentAt = this.firstAt = this.lastAt = null;
    this.firstTokens = 0;
    this.finish = this.ended = null; // shown, and as the stream said
    this.part("answer").replaceChildren();
    this.part("error").hidden = true;
  }

  start(title, bytesPerToken) {
    this.clear();
    this.bytesPerToken = bytesPerToken;
    this.sentAt = performance.now();
    setText(this.part("title"), title);
    this.part("answer").setAttribute("aria-label", `Answer with ${title.toLowerCase()}`);
    this.root.setAttribute("aria-busy", "true");
    this.draw(1);
  }

  get done() {
    return this.finish !== null;
  }

  push(event) {
    const before = this.tokens;
    if (event.tokens !== undefined) {
      this.tokens = event.tokens;
      this.promptTokens = event.promptTokens;
      if (event.tokens > before) {
        this.lastAt = performance.now();
        if (this.firstAt === null) [this.firstAt, this.firstTokens] = [this.lastAt, event.tokens];
      }
    }
    if (event.numbers) {
      const { kv_resident_tokens, kv_overwritten_tokens, kv_cut_tokens } = event.numbers;
      this.resident = kv_resident_tokens;
      this.logical = kv_resident_tokens + kv_overwritten_tokens + kv_cut_tokens;
    }
    if (event.finish) this.ended = event.finish;
    if (event.thought) this.append(event.thought, before, "thought");
    if (event.text) this.append(event.text, before);
    this.onPush();
  }

  append(text, before, kind) {
    const box = this.part("answer");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const node = document.createElement("span");
    if (kind) node.className = kind;
    node.textContent = text;
    box.append(node);
    this.text += text;
    this.pieces.push({ end: this.text.length, before, node });
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  end(finish, message) {
    this.finish = finish ?? this.ended ?? "stop";
    this.root.setAttribute("aria-busy", "false");
    if (message) {
      this.part("error").hidden = false;
      setText(this.part("error"), message);
    }
    this.onPush();
  }

  /** Mark the piece that has the character at `offset`, without the spaces before its first word. */
  mark(offset) {
    const node = this.pieceAt(offset)?.node;
    if (!node) return;
    const word = node.textContent.trimStart();
    if (word && word !== node.textContent) {
      node.before(node.textContent.slice(0, -word.length));
      node.textContent = word;
    }
    node.classList.add("parted");
  }

  /** The piece that has the character at `offset`. */
  pieceAt(offset) {
    return this.pieces.find((piece) => offset < piece.end);
  }

  speed() {
    const took = this.lastAt - this.firstAt;
    return took > 0 ? ((this.tokens - this.firstTokens) * 1000) / took : null;
  }

  mib(tokens) {
    return `${number((tokens * this.bytesPerToken) / 2 ** 20)} MiB`;
  }

  facts() {
    const speed = this.speed();
    const known = this.logical !== null;
    const saved = known ? this.logical - this.resident : 0;
    return {
      first: this.firstAt === null ? "–" : seconds(this.firstAt - this.sentAt),
      speed: speed === null ? "–" : `${number(speed)} tokens/s`,
      tokens: this.tokens ? `${number(this.tokens)} tokens` : "–",
      kv: known ? `${number(this.resident)} of ${number(this.logical)} tokens` : "–",
      bytes: known ? `${this.mib(this.resident)} of ${this.mib(this.logical)}` : "–",
      saved: known ? `${Math.round((100 * saved) / Math.max(1, this.logical))}%` : "–",
      finish: this.done ? (ENDS[this.finish] ?? this.finish) : this.sentAt === null ? "–" : "running",
    };
  }

  /** Numbers and the bar; its track is the logical length, on the scale of `longest`. */
  draw(longest) {
    for (const [name, text] of Object.entries(this.facts())) setText(this.part(name), text);
    const bar = this.part("bar");
    setShare(bar, (this.logical ?? 0) / longest);
    setShare(bar.firstElementChild, this.logical ? this.resident / this.logical : 0);
    bar.setAttribute("aria-label", this.logical === null
      ? "nothing is resident yet"
      : `${this.resident} of ${this.logical} tokens resident`);
  }

  /** For a screen reader, once. */
  sentence() {
    const { tokens, speed, kv, saved, finish } = this.facts();
    const title = this.part("title").textContent;
    if (this.finish === "failed") return `${title}: ${this.part("error").textContent}`;
    return `${title}: ${tokens}, ${speed}, ${kv} resident, ${saved} saved, ${finish}.`;
  }
}

/**
 * Where two answers part: {same, parted, tokens}, `same` characters and `tokens` before it. While
 * they have not, `tokens` is the shorter one's count. Up to `from` they are known to be the same.
 */
export function parting(one, other, from) {
  const shorter = Math.min(one.text.length, other.text.length);
  let same = from;
  while (same < shorter && one.text[same] === other.text[same]) same += 1;
  const ended = one.done && other.done && one.text.length !== other.text.length;
  if (same === shorter && !ended) return { same, parted: false, tokens: Math.min(one.tokens, other.tokens) };
  const found = [one, other].map((column) => column.pieceAt(same)).filter(Boolean);
  return { same, parted: true, tokens: Math.min(...found.map((piece) => piece.before)) };
}
