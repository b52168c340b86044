// SPDX-License-Identifier: Apache-2.0
// Small things that every part uses. Text from the server goes into the page as text only.

export const $ = (id) => document.getElementById(id);

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
export const number = (value) => grouped.format(value);
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
export const short = (value) => (value < 10000 ? number(value) : compact.format(value));

/** A rate or a mean: decimals only where they say something. */
export const rough = (value) => grouped.format(value < 10 ? value : Math.round(value));

export const clock = (date) => date.toLocaleTimeString("en-GB");

/** 3,175,204 is "3.0 MiB". */
export function bytes(value) {
  const steps = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  for (; value >= 1024 && step < steps.length - 1; step++) value /= 1024;
  return step === 0 ? `${number(value)} bytes` : `${value.toFixed(value < 10 ? 1 : 0)} ${steps[step]}`;
}

/** 806 is "13 min 26 s". */
export function duration(seconds) {
  const whole = Math.round(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]
    .map(([size, unit], i, all) => [Math.floor((i ? whole % all[i - 1][0] : whole) / size), unit])
    .filter(([count]) => count > 0);
  return parts.length ? parts.slice(0, 2).map(([count, unit]) => `${number(count)} ${unit}`).join(" ") : "0 s";
}

/** A latency in three digits: 0.0123 is "12.3 ms". */
export function latency(seconds) {
  if (seconds >= 60) return duration(seconds);
  const value = seconds >= 1 ? seconds : 1000 * seconds;
  return `${Number(value.toPrecision(3))} ${seconds >= 1 ? "s" : "ms"}`;
}

/** The name of a model that may be a folder, or a snapshot in Hugging Face's cache. */
export function modelName(model) {
  const cached = model.match(/models--([^/]+?)--([^/]+)\/snapshots\//);
  if (cached) return `${cached[1]}/${cached[2]}`;
  return /^[./~]/.test(model) ? model.replace(/\/+$/, "").split("/").pop() : model;
}

/** Set the text of an element, with a small unit after it; leaves it alone if it is the same. */
export function setText(element, text, unit = "") {
  const wanted = unit ? `${text} ${unit}` : text;
  if (element.dataset.text === wanted) return;
  element.dataset.text = wanted;
  element.textContent = text;
  if (unit) {
    const small = document.createElement("small");
    small.textContent = ` ${unit}`;
    element.append(small);
  }
}

/** A width for an element's style, in percent; set by script, which the page's policy allows. */
export function setShare(element, share) {
  element.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
}

/** An element with a class, text and children. */
export function make(tag, className = "", text = "", children = []) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

/** A list of terms and texts in a dl; null texts are left out. */
export function showFacts(list, facts) {
  list.replaceChildren(
    ...facts
      .filter(([, text]) => text !== null)
      .map(([name, text]) => make("div", "", "", [make("dt", "", name), make("dd", "", text)])),
  );
}
