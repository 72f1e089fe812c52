// Pictures of the console for the guide, into the folder PICTURES, after so many SECONDS.

import { withPage } from "./browser.js";

const { PICTURES, SECONDS } = process.env;

const wanted = [
  ["console", "light", { width: 1400, height: 900 }, true],
  ["console-dark", "dark", { width: 1400, height: 900 }, true],
  ["console-narrow", "light", { width: 400, height: 1250 }, false],
];
await Promise.all(wanted.map(([name, colorScheme, viewport, fullPage]) => withPage({ colorScheme, viewport }, async (page) => {
  await page.waitForTimeout(Number(SECONDS) * 1000);
  await page.screenshot({ path: `${PICTURES}/${name}.png`, fullPage });
})));
