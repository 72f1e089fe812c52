// Pictures of the console for the guide, into the folder PICTURES.

import { withPage } from "./browser.js";

const { PICTURES } = process.env;

for (const [name, width, colorScheme] of [["console", 1400, "light"], ["console-dark", 1400, "dark"], ["console-narrow", 400, "light"]]) {
  await withPage({ colorScheme, viewport: { width, height: 900 } }, async (page) => {
    await page.waitForTimeout(40000);
    await page.screenshot({ path: `${PICTURES}/${name}.png`, fullPage: true });
  });
}
