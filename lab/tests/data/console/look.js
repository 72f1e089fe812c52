// What lab/tests/console.rs has prepared, as somebody with a browser sees it.

import assert from "node:assert/strict";
import { rows, shows, withPage } from "./browser.js";

const { TOKEN } = process.env;

async function figuresAndTables(page) {
  await shows(page, "#owed", "1");
  await shows(page, "#dead", "4");
  await shows(page, "#failing", "1");
  await shows(page, "#stored", "120 since the worker started");
  assert.match(await page.textContent("#p95"), /^[\d.]+ m?s$/);
  assert.match(await page.textContent("#percentiles"), /half [\d.]+ m?s, 99 of 100 [\d.]+ m?s/);
  assert.match(await page.textContent("#state"), /^degraded: (a connection is down|publishing)$/);

  const connections = await rows(page, "connections");
  assert.deepEqual(connections.map(([name, , , , failing, dead]) => [name, failing, dead]), [["away", "0", "0"], ["default", "1", "4"], ["off", "0", "0"]]);
  assert.equal(connections[1][2], "connected");
  assert.match(connections[0][2], /^(disconnected|connecting|failed)/);
  assert.equal(connections[2][2], "disabled");

  const streams = Object.fromEntries((await rows(page, "streams")).map((row) => [row[0], row]));
  assert.deepEqual(streams.S, ["S", "default", "s.>", "in sync"]);
  assert.match(streams.WRONG[3], /storage/);
  assert.deepEqual(await rows(page, "webhooks"), [["hook", "https://hooks.example.com", "queue", "2", "0", "0"]]);
  const failures = await rows(page, "failures");
  assert.deepEqual(failures.map((row) => row[1]).sort(), ["nowhere", "s.large", "s.large", "s.large"]);
  assert.equal((await rows(page, "dead-letters")).length, 4);
}

async function nothingIsGivenAway(page) {
  const all = await page.content();
  for (const secret of ["hunter2", "T0K3N", "very large"]) assert.ok(!all.includes(secret), secret);
  // What came from the database is text, whatever it says.
  assert.equal(await page.$("img[src=x]"), null);
  assert.ok((await page.textContent("#dead-letters")).includes("<img src=x onerror=alert(1)>"));
}

const redrive = (page, id) => page.locator(`tr[data-dead-letter="${id}"]`).getByRole("button", { name: "Redrive" }).click();

async function nothingChangesWithoutTheToken(page, id) {
  assert.ok(await page.isHidden("#pause"));
  await redrive(page, id);
  await page.waitForSelector("dialog[open]");
  await page.fill("#token", "not-the-token-of-this-one");
  await page.click("#enter");
  await shows(page, "#wrong", "That is not the token.");
  await page.click("#cancel");
  await page.waitForSelector("dialog", { state: "hidden" });
  assert.equal((await rows(page, "dead-letters")).length, 4);
}

async function withTheTokenItDoes(page, id) {
  await page.getByRole("button", { name: "Unlock changes" }).click();
  await page.fill("#token", TOKEN);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#pause:not([hidden])");

  await page.locator(`tr[data-dead-letter="${id}"]`).getByRole("button", { name: "Body" }).click();
  await page.waitForSelector("#dead-letters pre");
  const body = await page.textContent("#dead-letters pre");
  assert.ok(body.startsWith("source: shop\n") && body.includes("very large"), body.slice(0, 100));
  await page.locator(`tr[data-dead-letter="${id}"]`).getByRole("button", { name: "Hide" }).click();
  await page.waitForSelector("#dead-letters pre", { state: "detached" });

  await redrive(page, id);
  await page.waitForSelector("#done:not([hidden])");
  assert.match(await page.textContent("#done"), new RegExp(`^Dead letter ${id} is owed again, as message \\d+\\.$`));

  await page.click("#pause");
  await shows(page, "#state", "down: paused");
  await shows(page, "#pause", "Resume");
  await page.click("#pause");
  await shows(page, "#pause", "Pause");

  await page.getByRole("button", { name: "Lock changes" }).click();
  await page.waitForSelector("#pause", { state: "hidden" });
}

async function itFits(page) {
  for (const width of [1400, 1000, 400, 320]) {
    await page.setViewportSize({ width, height: 900 });
    const over = await page.evaluate(() => document.scrollingElement.scrollWidth - window.innerWidth);
    assert.ok(over <= 0, `${over} pixels too wide at ${width}`);
  }
}

/** Contrast of text and ground, as WCAG counts it. */
async function itCanBeRead(page) {
  const poor = await page.evaluate(() => {
    const light = (colour) => {
      const [r, g, b] = colour.match(/[\d.]+/g).map((part) => Number(part) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
      const colour = getComputedStyle(element).backgroundColor;
      return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? ground(element.parentElement) : colour;
    };
    const shown = [...document.querySelectorAll("header *, main *")].filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !(e instanceof SVGElement));
    return shown.flatMap((element) => {
      const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
      const contrast = (one + 0.05) / (other + 0.05);
      return contrast < 4.5 ? [`${element.textContent.slice(0, 30)}: ${contrast.toFixed(1)}`] : [];
    });
  });
  assert.deepEqual(poor, []);
}

for (const colorScheme of ["light", "dark"]) {
  await withPage({ colorScheme }, async (page) => {
    await figuresAndTables(page);
    await itCanBeRead(page);
    await itFits(page);
    await nothingIsGivenAway(page);
  });
}
await withPage({}, async (page) => {
  const id = await page.getAttribute("#dead-letters tbody tr:has(td:text('s.large'))", "data-dead-letter");
  await nothingChangesWithoutTheToken(page, id);
  await withTheTokenItDoes(page, id);
});
