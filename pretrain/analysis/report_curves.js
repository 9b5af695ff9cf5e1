// The sections of plots over steps.

// title, unit, height, and the series: key, name, dash, dots. A plot appears if any run has any of its series.
const CURVES = [
  {
    title: "Loss",
    unit: "nats per token",
    height: 280,
    wide: true,
    level: true,
    smooth: true,
    series: [
      ["loss", "training"],
      ["validation_loss", "validation", null, true],
    ],
  },
  {
    title: "Source use",
    unit: "nats per token",
    zero: true,
    log: false,
    series: [["source_use", "loss with exchanged sources, minus validation loss", null, true]],
  },
  { title: "Learning rate", unit: "", zero: true, log: false, series: [["lr", "learning rate"]] },
  {
    title: "Gradient norm",
    unit: "L2",
    smooth: true,
    series: [
      ["grad_norm", "before clipping"],
      ["grad_norm_clipped", "after", [4, 3]],
    ],
  },
  {
    title: "Spike score",
    unit: "robust z of the loss",
    log: false,
    smooth: true,
    series: [["spike_score", "spike score"]],
  },
  {
    title: "Thrown away",
    unit: "steps so far",
    zero: true,
    least: 1,
    log: false,
    series: [
      ["skipped_steps", "skipped"],
      ["nonfinite_count", "not finite", [4, 3]],
    ],
  },
];
const SPEED = [
  { title: "Throughput", unit: "tokens/s", zero: true, smooth: true, series: [["tokens_per_second", "tokens/s"]] },
  {
    title: "Time of a step",
    unit: "s",
    zero: true,
    smooth: true,
    series: [
      ["step_seconds", "whole step"],
      ["data_seconds", "waiting for data", [4, 3]],
    ],
  },
  {
    title: "Model FLOPs utilisation",
    unit: "share of the peak",
    zero: true,
    smooth: true,
    series: [["mfu", "MFU"]],
  },
];
const NOT_PLOTTED = new Set(["tokens", "samples"]);
const PLOTTED = new Set([...CURVES, ...SPEED].flatMap(({ series }) => series.map(([key]) => key)));

// An average over both sides, weights falling with distance, so that the smooth curve does not lag behind the raw one.
// Of a thinned curve the means are smoothed: its kept peaks and dips would weigh too much.
function smoothed(series) {
  const { steps, values } = series.mean ?? series;
  const keep = state.smoothing,
    sums = values.map((value) => -value),
    weights = values.map(() => -1);
  for (const order of [1, -1]) {
    let sum = 0,
      weight = 0;
    for (let i = order > 0 ? 0 : values.length - 1; i >= 0 && i < values.length; i += order) {
      sum = keep * sum + values[i];
      weight = keep * weight + 1;
      sums[i] += sum;
      weights[i] += weight;
    }
  }
  return { xs: steps, ys: sums.map((sum, i) => sum / weights[i]) };
}

function curveLines(spec) {
  const lines = [];
  RUNS.forEach((run, index) => {
    if (state.hiddenRuns.has(index)) return;
    spec.series.forEach(([key, name, dash, dots], position) => {
      const series = run.metrics[key];
      if (!series) return;
      const color = lineColor(COMPARED ? index : position);
      const line = {
        name: COMPARED ? `${run.label}${spec.series.length > 1 ? ", " + name : ""}` : name,
        color,
        dash,
        dots,
        xs: series.steps,
        ys: series.values,
        bad: series.bad,
      };
      if (spec.smooth && !dots && state.smoothing > 0) {
        lines.push({ ...line, faint: true }, { ...line, ...smoothed(series), silent: true });
      } else lines.push(line);
    });
  });
  return lines;
}

function curve(spec) {
  const entropies = [...new Set(RUNS.map((run) => run.figures.unigram_entropy))].filter((value) => value !== null);
  const plot = new Plot({
    label: `${spec.title} over steps`,
    height: spec.height ?? 190,
    xLabel: "step",
    over: "step",
    zero: spec.zero,
    least: spec.least,
    log: spec.log,
    lines: () => curveLines(spec),
    level:
      spec.level && entropies.length === 1
        ? () => ({ value: entropies[0], label: `unigram entropy ${formatNumber(entropies[0])}` })
        : null,
  });
  const shown = spec.series.filter(([key]) => METRICS.has(key));
  const names = COMPARED
    ? shown.length > 1
      ? shown.map(([, name, dash, dots]) => element("span", {}, `${dots ? "● " : dash ? "┄ " : "─ "}${name}`))
      : []
    : shown.length > 1
      ? shown.map(([, name, , dots]) =>
          legendItem(() => lineColor(spec.series.findIndex((s) => s[1] === name)), name, dots),
        )
      : [];
  const legend = element("div", { class: "legend" }, ...names);
  return element(
    "div",
    { class: "card" },
    element(
      "div",
      { class: "plot-head" },
      element("h3", {}, spec.title, " ", element("span", { class: "unit" }, spec.unit)),
      spec.wide ? smoothing() : null,
      spec.wide ? legend : null,
      plot.toggle(),
    ),
    spec.wide ? null : legend,
    plot.host,
  );
}

function smoothing() {
  const longest = Math.max(0, ...RUNS.map(({ metrics: { loss } }) => (loss?.mean ?? loss)?.steps.length ?? 0));
  state.smoothing = longest > 150 ? 0.8 : 0;
  const input = element("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: state.smoothing,
    oninput: () => {
      state.smoothing = Number(input.value);
      redrawAll();
    },
  });
  return element("label", { class: "smooth", style: "margin-left:18px" }, "smoothing", input);
}

const METRICS = new Set(RUNS.flatMap((run) => Object.keys(run.metrics)));
const present = (specs) => specs.filter(({ series }) => series.some(([key]) => METRICS.has(key)));

function curvesSection() {
  const others = [...METRICS]
    .filter((key) => !PLOTTED.has(key) && !NOT_PLOTTED.has(key))
    .map((key) => ({ title: key.replaceAll("_", " "), unit: "", series: [[key, key]] }));
  const specs = present([...CURVES, ...others]);
  if (!specs.length) return [];
  const reset = element(
    "button",
    { type: "button", id: "whole", hidden: true, onclick: () => setRange(null) },
    "whole run",
  );
  const wide = specs.filter((spec) => spec.wide),
    rest = specs.filter((spec) => !spec.wide);
  return [
    element(
      "div",
      { class: "row section-head" },
      element("h2", {}, "Loss and rate"),
      chips(),
      element("span", { class: "sub" }, "Drag to zoom, double-click for all. ", reset),
    ),
    ...wide.map(curve),
    element("div", { class: "grid" }, ...rest.map(curve)),
  ];
}

function speedSection() {
  const specs = present(SPEED);
  if (!specs.length) return [];
  const head = element("div", { class: "row section-head" }, element("h2", {}, "Speed"));
  return [head, element("div", { class: "grid" }, ...specs.map(curve))];
}
