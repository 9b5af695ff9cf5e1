// Data, shared state, numbers as text, ticks, colours.

const page = document.getElementById("page");
const failed = (message) =>
  page.prepend(element("div", { class: "card failure" }, `This report could not be drawn completely: ${message}`));
addEventListener("error", (event) => failed(event.message));
addEventListener("unhandledrejection", (event) => failed(event.reason.message));

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const COMPARED = RUNS.length > 1;
const DARK = matchMedia("(prefers-color-scheme: dark)");

// What the reader has chosen. `range`: the steps in view, null for all; `hover`: the step under the pointer,
// `part`: which part of the layers the panels show, see PARTS.
const state = {
  step: 1,
  layer: 0,
  view: "value",
  part: null,
  range: null,
  hover: null,
  smoothing: 0,
  hiddenRuns: new Set(),
  hiddenEvents: new Set(),
};

// Everything that draws: objects with draw(), and drawCursor() where something follows the pointer or the sliders.
const drawings = [];
let pending = 0; // 0 nothing, 1 what follows the pointer, 2 also what shows the chosen step or layer, 3 everything

function redraw(level) {
  if (!pending)
    requestAnimationFrame(() => {
      const due = pending;
      pending = 0;
      for (const drawing of drawings) {
        if (due === 3 || (due === 2 && drawing.showsChoice)) drawing.draw();
        else drawing.drawCursor?.();
      }
    });
  pending = Math.max(pending, level);
}
const redrawCursor = () => redraw(1);
const redrawChoice = () => redraw(2);
const redrawAll = () => redraw(3);
DARK.addEventListener("change", redrawAll);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// ---- colours: Okabe and Ito's, which the colour-blind can tell apart, darkened or lightened for the ground

const LINES_LIGHT = ["#0067b1", "#d55e00", "#00875f", "#b8498f", "#8a6a00", "#2f9fd8", "#5b4bb7", "#6b6b6b"];
const LINES_DARK = ["#5ab4ff", "#ff8f45", "#2fd0a0", "#f08cc8", "#e6c229", "#8fd8ff", "#b0a2ff", "#b8b8b8"];
const lineColor = (index) => (DARK.matches ? LINES_DARK : LINES_LIGHT)[index % LINES_LIGHT.length];
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Perceptually even ramps: viridis for sizes, blue - grey - orange for ratios around one.
const RAMP = [
  "#440154",
  "#482878",
  "#3e4989",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
const DIVERGING_LIGHT = [
  "#0a3d7a",
  "#2f74b8",
  "#84b3dc",
  "#cfe0ee",
  "#f3f3f3",
  "#f8dcc4",
  "#ee9f5f",
  "#cf5d14",
  "#7c2c00",
];
const DIVERGING_DARK = [
  "#b9dcff",
  "#6fb0ee",
  "#3578b8",
  "#21456b",
  "#23272f",
  "#5c3516",
  "#b05a15",
  "#f0924a",
  "#ffd0a6",
];
const BAD = "#ff2e63";

function rampTable(stops) {
  const table = new Uint8Array(256 * 3);
  const colors = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (colors.length - 1),
      low = Math.min(Math.floor(at), colors.length - 2);
    for (let c = 0; c < 3; c++)
      table[i * 3 + c] = colors[low][c] + (colors[low + 1][c] - colors[low][c]) * (at - low);
  }
  return table;
}
const TABLES = { size: rampTable(RAMP), light: rampTable(DIVERGING_LIGHT), dark: rampTable(DIVERGING_DARK) };
const colorTable = (view) => (view === "value" ? TABLES.size : DARK.matches ? TABLES.dark : TABLES.light);

// ---- numbers

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const superscript = (n) =>
  String(n)
    .replace("-", "⁻")
    .replace(/\d/g, (digit) => SUPERSCRIPT[digit]);
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

function formatNumber(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value; // a figure that is not finite comes as its name
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    const factor = trim(mantissa).replace("-", "−");
    return `${factor === "1" ? "" : factor + "×"}10${superscript(Number(exponent))}`;
  }
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  const text =
    decimals > 6
      ? trim(value.toFixed(decimals))
      : value.toLocaleString("en-US", { maximumFractionDigits: decimals });
  return text.replace("-", "−");
}
// Ticks that lie close together need the digits that tell them apart.
function tickFormat(ticks) {
  const gap = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : 0,
    most = Math.max(...ticks.map(Math.abs));
  const decimals = Math.max(0, Math.min(8, Math.ceil(-Math.log10(gap) - 1e-9)));
  if (!gap || most >= 1e6 || gap < 1e-4) return (tick) => formatNumber(tick, 4);
  const exact = ticks.every((tick) => Math.abs(tick - Number(tick.toFixed(decimals))) < gap * 1e-6)
    ? decimals
    : decimals + 1;
  const options = { minimumFractionDigits: exact, maximumFractionDigits: exact };
  return (tick) => (tick === 0 ? "0" : tick.toLocaleString("en-US", options).replace("-", "−"));
}
const plural = (count, noun) => `${formatInteger(count)} ${noun}${count === 1 ? "" : "s"}`;
const formatInteger = (value) => Math.round(value).toLocaleString("en-US");

function formatCompact(value) {
  for (const [size, unit] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e4, "k"],
  ]) {
    if (Math.abs(value) >= size) {
      const scaled = unit === "k" ? value / 1e3 : value / size;
      return [trim(scaled.toPrecision(3).includes("e") ? scaled.toFixed(0) : scaled.toPrecision(3)), unit];
    }
  }
  return [formatNumber(value, 4), ""];
}

function formatSeconds(value) {
  const s = Math.round(value);
  if (value < 60) return [formatNumber(value, 3), "s"];
  if (s < 3600) return [`${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`, "min"];
  const h = Math.floor(s / 3600);
  return h < 100 ? [`${h}:${String(Math.floor((s % 3600) / 60)).padStart(2, "0")}`, "h"] : [formatInteger(h), "h"];
}

// ---- axes

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count),
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.9) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step || 0);
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.8) return linearTicks(low, high, count);
  const every = Math.max(1, Math.ceil(decades / count)),
    factors = decades < count / 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (power % every) continue;
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

const integerTicks = (low, high, count) =>
  high - low <= count
    ? Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, i) => Math.ceil(low) + i)
    : linearTicks(low, high, count).filter(Number.isInteger);

// The index of the entry of the rising array `xs` that is nearest to x; -1 if it is empty.
function nearest(xs, x) {
  if (!xs.length) return -1;
  let low = 0,
    high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

// All logged steps of all runs: the whole width of the plots over steps.
const FULL_RANGE = (() => {
  let low = Infinity,
    high = -Infinity;
  const take = (steps) => {
    if (steps.length) {
      low = Math.min(low, steps[0]);
      high = Math.max(high, steps[steps.length - 1]);
    }
  };
  for (const run of RUNS) {
    Object.values(run.metrics).forEach((series) => {
      take(series.steps);
      take(series.bad);
    });
    run.layers.forEach((matrix) => take(DATA.steps[matrix.at]));
    take(
      run.events
        .map((event) => event.step)
        .filter((step) => step !== null)
        .sort((a, b) => a - b),
    );
  }
  return low > high ? [0, 1] : high === low ? [low - 0.5, high + 0.5] : [low, high];
})();
const stepRange = () => state.range ?? FULL_RANGE;

// ---- tooltip

const tooltip = document.getElementById("tooltip");
function showTooltip(event, ...children) {
  tooltip.replaceChildren(...children);
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 16;
  tooltip.style.left = `${Math.max(4, left)}px`;
  tooltip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 6))}px`;
}
const hideTooltip = () => {
  tooltip.hidden = true;
};
const swatch = (color, round) =>
  element("i", { class: round ? "swatch dot" : "swatch", style: `background:${color}` });

// Keeps a swatch's colour right when the page turns light or dark.
function legendItem(color, text, round) {
  const mark = swatch(color(), round);
  drawings.push({
    draw: () => {
      mark.style.background = color();
    },
  });
  return element("span", {}, mark, text);
}
const runSwatch = (run) => legendItem(() => lineColor(run), "");
const runLegend = () => RUNS.map((run, index) => legendItem(() => lineColor(index), run.label));
