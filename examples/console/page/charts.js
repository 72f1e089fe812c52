// Two small charts, drawn as SVG.

const WIDTH = 400;
const HEIGHT = 150;
const LEFT = 52;
const BOTTOM = 20;
const TOP = 12;

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function begin(svg) {
  // As wide as it is shown, so that text is not stretched.
  const width = Math.round(svg.getBoundingClientRect().width) || WIDTH;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  return width;
}

/** Axis with the largest value and half of it. */
function scale(largest, width, write) {
  const parts = [0, 0.5, 1].flatMap((share) => {
    const y = HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);
    return [
      shape("line", { class: "grid", x1: LEFT, x2: width, y1: y, y2: y }),
      shape("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, share === 0 ? "0" : write(share * largest)),
    ];
  });
  return parts;
}

/** A next number of the kind 1, 2, 5, 10, …, not below the one given. */
function round(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= number);
}

/** Points [seconds, value] over time, on a scale that goes to `least` or further; the last one is now. */
export function line(svg, points, write, least) {
  const width = begin(svg);
  const largest = round(Math.max(least, ...points.map(([, value]) => value)));
  const parts = scale(largest, width, write);
  const end = points.at(-1)?.[0] ?? 0;
  const span = Math.max(60, end - (points[0]?.[0] ?? 0));
  const x = (at) => width - ((end - at) / span) * (width - LEFT);
  const y = (value) => HEIGHT - BOTTOM - (value / largest) * (HEIGHT - BOTTOM - TOP);
  if (points.length > 0) {
    const path = points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" L");
    parts.push(
      shape("path", { class: "under", d: `M${x(points[0][0]).toFixed(1)},${HEIGHT - BOTTOM} L${path} L${x(end)},${HEIGHT - BOTTOM} Z` }),
      shape("path", { class: "line", d: `M${path}` }),
    );
  }
  parts.push(
    shape("text", { x: LEFT, y: HEIGHT - 4 }, `${Math.round(span)} s ago`),
    shape("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
  );
  svg.replaceChildren(...parts);
}

/** One bar for each [upper bound, count], from the first to the last that is not empty. */
export function bars(svg, counts, write) {
  const width = begin(svg);
  const filled = counts.map(([, count], i) => (count > 0 ? i : -1)).filter((i) => i >= 0);
  const first = Math.max(0, Math.min(filled[0] ?? 0, counts.length - 6));
  const shown = counts.slice(first, Math.max((filled.at(-1) ?? 0) + 1, first + 6));
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  const largest = Math.max(1, ...shown.map(([, count]) => (all > 0 ? (100 * count) / all : 0)));
  const top = Math.min(100, round(largest));
  const parts = scale(top, width, (value) => `${value} %`);
  const step = (width - LEFT) / shown.length;
  const every = Math.ceil((shown.length * 62) / (width - LEFT));
  shown.forEach(([bound, count], i) => {
    const height = all > 0 ? ((100 * count) / all / top) * (HEIGHT - BOTTOM - TOP) : 0;
    parts.push(shape("rect", { class: "bar", x: LEFT + i * step + 2, width: Math.max(step - 4, 1), y: HEIGHT - BOTTOM - height, height, rx: 2 }));
    if (i % every === 0) {
      const label = bound === Infinity ? "more" : `≤ ${write(bound)}`;
      parts.push(shape("text", { x: LEFT + (i + 0.5) * step, y: HEIGHT - 4, "text-anchor": "middle" }, label));
    }
  });
  svg.replaceChildren(...parts);
}
