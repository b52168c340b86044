// SPDX-License-Identifier: Apache-2.0
// Takes the pictures of one tab of the console; scripts/console_pictures.py runs it.
//   node console_pictures.mjs MODULES URL FOLDER watch|try
import { mkdtempSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [modules, url, folder, tab] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
const context = await chromium.launchPersistentContext(mkdtempSync(join(tmpdir(), "chromium-")), {
  executablePath: "/usr/bin/chromium", headless: true, args: ["--no-sandbox", "--disable-gpu"],
  viewport: { width: 1200, height: tab === "try" ? 1000 : 900 }, colorScheme: "light",
});
const page = await context.newPage();
await page.goto(`${url}/longflow#${tab}`);
await page.waitForSelector('#status[data-state="live"]');
const shot = (name) => page.screenshot({ path: join(folder, `console-${name}.png`) });

if (tab === "watch") {
  await page.waitForTimeout(5000); // rates need two answers
  await shot("light");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForTimeout(1000);
  await shot("dark");
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForTimeout(2000);
  await shot("phone");
} else {
  await page.fill("#try-prompt", "Explain how a bicycle stays upright, first to a child, then to a student of physics.");
  await page.fill("#try-tokens", "128");
  await page.fill("#try-max", "400");
  await page.click("#try-run");
  await page.waitForFunction(() => document.getElementById("try-said").textContent !== "", null, { timeout: 180000 });
  await page.evaluate(() => {
    document.activeElement.blur();
    for (const answer of document.querySelectorAll(".answer")) answer.scrollTop = 0;
  });
  await shot("try");
  console.log(await page.innerText("#try-said"));
}
await context.close();
