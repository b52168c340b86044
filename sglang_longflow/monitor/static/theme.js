// SPDX-License-Identifier: Apache-2.0
// Runs before the page is painted: a stored choice wins over the system's.
(() => {
  const root = document.documentElement;
  const modes = ["system", "light", "dark"];
  let mode = "system";
  try {
    mode = localStorage.getItem("longflow-theme") ?? mode;
  } catch {
    // storage may be off: the choice then lasts as long as the page
  }
  function apply() {
    if (!modes.includes(mode)) mode = "system";
    if (mode === "system") delete root.dataset.theme;
    else root.dataset.theme = mode;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${mode}`;
  }
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      mode = modes[(modes.indexOf(mode) + 1) % modes.length];
      try {
        localStorage.setItem("longflow-theme", mode);
      } catch {
        // as above
      }
      apply();
    });
  });
})();
