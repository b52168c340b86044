// SPDX-License-Identifier: Apache-2.0
// Tabs by the WAI-ARIA pattern: arrows, Home and End choose; the address keeps the choice (#try).

const list = document.querySelector('[role="tablist"]');
const tabs = () => [...list.querySelectorAll('[role="tab"]')].filter((tab) => !tab.hidden);
const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
const name = (tab) => panel(tab).id.replace(/^tab-/, "");

/** Show a tab's panel; `document` gets the event "tab" with its name. */
function select(chosen) {
  for (const tab of tabs()) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    panel(tab).hidden = tab !== chosen;
  }
  document.dispatchEvent(new CustomEvent("tab", { detail: name(chosen) }));
}

/** By the user: the address follows, without an entry in the history. */
function choose(tab) {
  history.replaceState(null, "", tab === tabs()[0] ? " " : `#${name(tab)}`);
  select(tab);
}

/** The tab that the address names; another anchor, such as the skip link's, changes nothing. */
function follow() {
  const wanted = tabs().find((tab) => `#${name(tab)}` === location.hash);
  if (wanted) select(wanted);
}

list.addEventListener("click", (event) => {
  const tab = event.target.closest('[role="tab"]');
  if (tab) choose(tab);
});
list.addEventListener("keydown", (event) => {
  const all = tabs();
  const at = all.indexOf(document.activeElement);
  const next = {
    ArrowRight: (at + 1) % all.length,
    ArrowLeft: (at + all.length - 1) % all.length,
    Home: 0,
    End: all.length - 1,
  }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  all[next].focus();
  choose(all[next]);
});
addEventListener("hashchange", follow);
follow();
