// SPDX-License-Identifier: Apache-2.0
// The settings and totals of the stats in words and in units that people read.
import { $, bytes, duration, number, showFacts } from "./format.js";

const SETTINGS = {
  kv_budget: "Budget of a request",
  kv_policy: "Policy",
  kv_policies_allowed: "Policies that requests may ask for",
  kv_budget_min: "Smallest budget allowed",
  kv_budget_max: "Largest budget allowed",
  kv_budget_allow_full: "Full KV allowed",
  kv_protect_sink_tokens: "First tokens always kept",
  kv_protect_recent_tokens: "Last tokens always kept",
  kv_victims: "One victim per",
  kv_decode_kernel: "Decode",
  kv_planned_rows: "Requests at the budget, as planned",
  max_running_requests: "Requests at once, at most",
  max_queued_requests: "Requests waiting, at most",
  overlap_schedule: "Overlap scheduling",
  radix_cache: "Prefix cache",
  decode_cuda_graph: "CUDA graphs in decode",
  device_name: "Device",
  device_memory_bytes: "Device memory",
  weights_bytes: "Weights",
  kv_pool_bytes: "KV pool",
  device_state_bytes: "State of the budgets",
  l2_set_aside_bytes: "L2 cache set aside",
};
const TOTALS = {
  decoded_tokens: "Tokens decoded",
  overwritten_tokens: "Slots overwritten",
  cut_tokens: "Prompt tokens cut",
  peak_running_requests: "Most requests at once",
  retracted_budgeted_rows: "Requests with a budget retracted",
  failed_hooks: "Requests ended by an error of the plugin",
};
const HIDDEN = ["capacity_warning"]; // a line of its own at the top
const TOKENS = ["kv_budget", "kv_budget_min", "kv_budget_max"];
const UNSET = {
  kv_budget_max: "what the pool holds",
  kv_planned_rows: "no plan",
  max_queued_requests: "no limit",
  device_memory_bytes: "no GPU",
};

const words = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

function text(name, value) {
  if (value === null || value === undefined) return UNSET[name] ?? "not known";
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "kv_budget" && value === 0) return "full KV";
  if (name.startsWith("kv_protect_") && value === 0) return "the policy's own";
  if (name === "kv_victims") return value === "kv_head" ? "KV head" : value;
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_bytes")) return bytes(value);
  return name.endsWith("_tokens") || TOKENS.includes(name) ? `${number(value)} tokens` : number(value);
}

/** Named ones first, in the order of the tables; then what a newer server may add. */
function facts(values, labels) {
  const names = [...Object.keys(labels), ...Object.keys(values).filter((name) => !(name in labels))];
  return names
    .filter((name) => name in values && !HIDDEN.includes(name))
    .map((name) => [labels[name] ?? words(name), text(name, values[name])]);
}

export function showSettings(stats) {
  const totals = Object.entries(TOTALS).concat(
    Object.keys(stats.counters).filter((name) => !(name in TOTALS)).map((name) => [name, words(name)]),
  );
  showFacts($("settings"), facts(stats.settings, SETTINGS));
  showFacts($("totals"), [
    ["Up for", duration(stats.uptime_s)],
    ...totals.filter(([name]) => name in stats.counters).map(([name, label]) => [label, number(stats.counters[name])]),
  ]);
}
