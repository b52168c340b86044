// SPDX-License-Identifier: Apache-2.0
// The pool as cells: who owns what now.
import { $, number, setText } from "./format.js";

const CELLS = 480; // divides by the columns of both layouts
const KINDS = [
  ["budgeted", "Rows with a budget"],
  ["full", "Rows with full KV"],
  ["prefill", "In prefill"],
  ["held", "Prefix cache, in use"],
  ["evictable", "Prefix cache, evictable"],
  ["other", "Between two owners"],
  ["free", "Free"],
];

/** Owners of all slots, in the order of the picture: [{kind, tokens, rid}]; sums to the pool. */
export function owners(stats) {
  const { total_tokens: total, available_tokens: free, evictable_tokens: evictable } = stats.pool;
  const found = [];
  for (const budgeted of [true, false]) {
    for (const row of stats.requests) {
      if (row.kv_budget > 0 !== budgeted || !row.own_tokens) continue;
      found.push({ kind: budgeted ? "budgeted" : "full", tokens: row.own_tokens, rid: row.rid });
    }
  }
  for (const row of stats.prefilling) {
    found.push({ kind: "prefill", tokens: row.own_tokens, rid: row.rid });
  }
  found.push({ kind: "held", tokens: stats.tree_held_tokens });
  found.push({ kind: "evictable", tokens: evictable });
  const known = found.reduce((sum, part) => sum + part.tokens, 0);
  found.push({ kind: "other", tokens: Math.max(0, total - free - known) });
  found.push({ kind: "free", tokens: free });
  return found.filter((part) => part.tokens > 0);
}

/** The owner of each cell: the one that owns the slot in its middle. */
export function cellOwners(parts, total, cells = CELLS) {
  const result = [];
  let part = 0;
  let end = parts.length ? parts[0].tokens : 0;
  for (let cell = 0; cell < cells; cell++) {
    const middle = ((cell + 0.5) * total) / cells;
    while (middle >= end && part < parts.length - 1) end += parts[++part].tokens;
    result.push(parts[part]);
  }
  return result;
}

export class Pool {
  constructor() {
    this.cells = Array.from({ length: CELLS }, () => document.createElement("i"));
    $("cells").replaceChildren(...this.cells);
    this.shown = [];
    this.legend = new Map();
    for (const [kind, label] of KINDS) this.legend.set(kind, this.legendEntry(kind, label));
    $("legend").replaceChildren(...[...this.legend.values()].map((entry) => entry.item));
    $("cells").addEventListener("pointerover", (event) => {
      const part = this.shown[this.cells.indexOf(event.target)];
      if (part) this.say(part);
    });
    $("cells").addEventListener("pointerleave", () => this.say(null));
  }

  legendEntry(kind, label) {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.className = kind === "budgeted" || kind === "full" ? `${kind}-0` : kind;
    const name = document.createElement("span");
    name.textContent = label;
    const value = document.createElement("b");
    item.append(swatch, name, value);
    return { item, value, label };
  }

  /** Name the owner under the pointer, and mark its cells. */
  say(part) {
    this.marked = part?.rid ?? null;
    this.mark();
    if (!part) return setText($("cell-note"), this.scale ?? "");
    const label = this.legend.get(part.kind).label.toLowerCase();
    setText($("cell-note"), `${part.rid ? `${part.rid}: ` : ""}${number(part.tokens)} slots, ${label}`);
  }

  mark() {
    this.cells.forEach((cell, i) => {
      cell.classList.toggle("hit", this.marked !== null && this.shown[i]?.rid === this.marked);
    });
  }

  marked = null;

  render(stats) {
    const total = stats.pool.total_tokens;
    const parts = owners(stats);
    const sums = Object.fromEntries(KINDS.map(([kind]) => [kind, 0]));
    let shade = 0;
    for (const part of parts) {
      sums[part.kind] += part.tokens;
      const striped = part.kind === "budgeted" || part.kind === "full";
      part.style = striped ? `${part.kind}-${shade++ % 2}` : part.kind;
    }
    this.shown = cellOwners(parts, total);
    this.cells.forEach((cell, i) => {
      const style = this.shown[i].style;
      if (cell.dataset.owner !== style) {
        cell.dataset.owner = style;
        cell.className = style;
      }
    });
    this.mark();
    const used = total - sums.free - sums.evictable;
    const kept = sums.evictable ? `, ${number(sums.evictable)} kept in the prefix cache for later` : "";
    setText($("pool-note"), `${number(used)} of ${number(total)} slots in use by requests${kept}`);
    const each = Math.round(total / CELLS);
    const size = each > 1 ? `about ${number(each)} slots` : "a slot or less";
    this.scale = `A square is ${size}. Shades tell neighbouring requests apart.`;
    if (this.marked === null) setText($("cell-note"), this.scale);
    for (const [kind, entry] of this.legend) {
      setText(entry.value, number(sums[kind]));
      entry.item.hidden = kind === "other" && sums.other === 0;
    }
    $("cells").setAttribute(
      "aria-label",
      KINDS.map(([kind, label]) => `${label}: ${number(sums[kind])} slots`).join("; "),
    );
  }
}
