// A page of the console in a browser, watched: whatever goes wrong in it, or leads away from it, fails the test.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const { CONSOLE_URL, CHROMIUM } = process.env;

/** Runs `look` with a page that shows the console. */
export async function withPage(options, look) {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage({ viewport: { width: 1400, height: 900 }, timezoneId: "UTC", ...options });
    const wrong = [];
    // A refused request is written there by the browser itself.
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) wrong.push(message.text());
    });
    page.on("pageerror", (error) => wrong.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(CONSOLE_URL)) wrong.push(`asks for ${request.url()}`);
    });
    await page.goto(CONSOLE_URL);
    await page.waitForFunction(() => document.getElementById("owed").textContent !== "–");
    await look(page);
    assert.deepEqual(wrong, []);
  } finally {
    await browser.close();
  }
}

/** Waits until an element has this text. */
export async function shows(page, selector, text) {
  try {
    await page.waitForFunction(([where, wanted]) => document.querySelector(where)?.textContent.trim() === wanted, [selector, text], { timeout: 15000 });
  } catch {
    assert.equal((await page.textContent(selector)).trim(), text, selector);
  }
}

/** The rows of a table, cell by cell. */
export function rows(page, id) {
  return page.$$eval(`#${id} tbody tr`, (found) => found.map((row) => [...row.cells].map((cell) => cell.textContent.trim())));
}
