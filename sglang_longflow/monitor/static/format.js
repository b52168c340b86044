// SPDX-License-Identifier: Apache-2.0
// Small things that every part uses. Text from the server goes into the page as text only.

export const $ = (id) => document.getElementById(id);

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
export const number = (value) => grouped.format(value);

export const clock = (date) => date.toLocaleTimeString("en-GB");

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
