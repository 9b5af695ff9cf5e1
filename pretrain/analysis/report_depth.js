// The depth section: one panel a signal, with heat maps, the profile over depth and the history of a layer.

const MATRICES = RUNS.flatMap((run, index) => run.layers.map((packed) => new Matrix(packed, index)));
const SAMPLED_STEPS = [...new Set(MATRICES.flatMap((matrix) => matrix.steps))].sort((a, b) => a - b);
const DEEPEST = Math.max(1, ...MATRICES.map((matrix) => matrix.layers));
const visible = (matrix) => !state.hiddenRuns.has(matrix.run);

class Panel {
  constructor(signal) {
    const about = DATA.signals[signal];
    this.signal = signal;
    this.unit = about.unit;
    this.matrices = MATRICES.filter((matrix) => matrix.signal === signal);
    this.groups = [...new Set(this.matrices.map((matrix) => matrix.group))];
    this.deepGroups = this.groups.filter((group) => this.matrices.some((m) => m.group === group && m.layers > 1));
    this.group = this.deepGroups[0] ?? this.groups[0];
    this.gradient = element("canvas", { "aria-hidden": "true" });
    this.ends = [element("span"), element("span")];
    drawings.push(this); // before its maps, which use its colour scale
    this.draw();
    this.node = element(
      "section",
      { class: "card signal", id: `signal-${signal}` },
      element(
        "div",
        { class: "row" },
        element("h3", {}, about.title, " ", element("span", { class: "unit" }, this.unit)),
        this.deepGroups.length
          ? element(
              "div",
              { class: "scale" },
              this.ends[0],
              this.gradient,
              this.ends[1],
              element("span", {}, swatch(BAD, true), "not finite"),
            )
          : null,
      ),
      about.text ? element("div", { class: "about" }, about.text) : null,
      ...this.maps(),
      this.profiles(),
      this.foot(),
    );
  }

  draw() {
    this.scale = new ColorScale(this.matrices.filter((matrix) => matrix.layers > 1 && visible(matrix)));
    this.scale.legend(this.gradient);
    const { low, high, cut } = this.scale;
    this.ends[0].textContent = (cut ? "≤ " : "") + formatNumber(this.scale.end(low), 3);
    this.ends[1].textContent = (cut ? "≥ " : "") + formatNumber(this.scale.end(high), 3);
    for (const [run, row] of this.rows ?? []) row.hidden = state.hiddenRuns.has(run);
  }

  maps() {
    this.rows = new Map();
    const height = COMPARED ? 190 : 240;
    for (let run = 0; run < RUNS.length; run++) {
      const deep = this.matrices.filter((matrix) => matrix.run === run && matrix.layers > 1);
      if (!deep.length) continue;
      const maps = deep.map((matrix) =>
        element(
          "div",
          { class: "map" },
          element("div", { class: "name", title: matrix.group }, groupName(matrix.group)),
          new HeatMap(matrix, this, height).host,
        ),
      );
      const name = element("div", { class: "run-name" }, runSwatch(run), RUNS[run].label);
      this.rows.set(run, element("div", {}, COMPARED ? name : null, element("div", { class: "maps" }, ...maps)));
    }
    return this.rows.values();
  }

  // Of one run every group is a colour; of several runs every run is a colour, and one group is shown at a time.
  lines(line) {
    const shown = this.matrices.filter((matrix) => visible(matrix) && (!COMPARED || matrix.group === this.group));
    return shown.map((matrix) => {
      const index = COMPARED ? matrix.run : this.groups.indexOf(matrix.group);
      return {
        name: COMPARED ? RUNS[matrix.run].label : groupName(matrix.group),
        color: lineColor(index),
        dash: DASHES[Math.floor(index / LINES_LIGHT.length) % DASHES.length],
        ...line(matrix),
      };
    });
  }

  depthLines() {
    return this.lines((matrix) => ({
      xs: Array.from({ length: matrix.layers }, (_, i) => i),
      ys: matrix.profile(nearest(matrix.steps, state.step)),
      layers: matrix.layers,
    })).filter((entry) => entry.layers > 1);
  }

  timeLines() {
    // a group of one row (the embeddings) has no layer to choose and is always shown
    return this.lines((matrix) => ({
      xs: matrix.steps,
      layers: matrix.layers,
      ys: matrix.layers === 1 ? matrix.history(0) : state.layer < matrix.layers ? matrix.history(state.layer) : [],
    })).filter((entry) => entry.ys.length);
  }

  profiles() {
    const depth = new Plot({
      label: `${this.signal} over depth`,
      height: 216,
      xLabel: "layer",
      over: "layer",
      showsChoice: true,
      lines: () => this.depthLines(),
      mark: () => state.layer,
      pick: (x) => choosePlace(state.step, Math.round(x)),
    });
    const time = new Plot({
      label: `${this.signal} over time`,
      height: 216,
      xLabel: "step",
      over: "step",
      showsChoice: true,
      lines: () => this.timeLines(),
      mark: () => state.step,
      pick: (x) => choosePlace(x, state.layer),
    });
    const [depthTitle, timeTitle] = [element("span"), element("span")];
    drawings.push({
      showsChoice: true,
      draw: () => {
        depthTitle.textContent = `step ${formatInteger(state.step)}`;
        timeTitle.textContent = `layer ${formatInteger(state.layer)}`;
      },
    });
    const frame = (title, plot) =>
      element("div", {}, element("div", { class: "plot-head" }, title, plot.toggle()), plot.host);
    return element(
      "div",
      {},
      this.legend(),
      element(
        "div",
        { class: "profiles" },
        frame(element("h3", {}, "Over depth ", element("span", { class: "unit" }, "at ", depthTitle)), depth),
        frame(element("h3", {}, "Over time ", element("span", { class: "unit" }, "of ", timeTitle)), time),
      ),
    );
  }

  legend() {
    if (COMPARED) {
      const select = element(
        "select",
        {
          "aria-label": "row group",
          onchange: () => {
            this.group = select.value;
            redrawAll();
          },
        },
        ...this.groups.map((group) => element("option", { value: group }, groupName(group))),
      );
      select.value = this.group;
      return element(
        "div",
        { class: "legend", style: "margin-top:12px;align-items:center" },
        "Profiles of",
        select,
        ...runLegend(),
      );
    }
    const items = this.groups.map((group, index) => legendItem(() => lineColor(index), groupName(group)));
    return element("div", { class: "legend", style: "margin:10px 0 -6px 44px" }, ...items);
  }

  foot() {
    const most = Math.max(...this.matrices.map((matrix) => matrix.sampled));
    const shown = Math.max(...this.matrices.map((matrix) => matrix.steps.length));
    const samples =
      shown < most
        ? `${formatInteger(shown)} of ${formatInteger(most)} sampled steps, evenly spread`
        : plural(most, "sampled step");
    return element(
      "div",
      { class: "foot" },
      `${samples}. Layer 0 is the lowest. Where a pixel covers several layers or steps it shows the largest value.`,
    );
  }
}

let showPlace = () => {}; // set by the controls: brings the sliders and their figures up to date

function choosePlace(step, layer) {
  state.step = SAMPLED_STEPS[nearest(SAMPLED_STEPS, step)];
  state.layer = Math.max(0, Math.min(DEEPEST - 1, layer));
  showPlace();
  redrawChoice();
}

function controls() {
  const slider = (label, max, oninput) =>
    element("input", { type: "range", min: 0, max, step: 1, "aria-label": label, oninput });
  const [stepText, layerText] = [element("b"), element("b")];
  const step = slider("step", SAMPLED_STEPS.length - 1, () => choosePlace(SAMPLED_STEPS[step.value], state.layer));
  const layer = slider("layer", DEEPEST - 1, () => choosePlace(state.step, Number(layer.value)));
  showPlace = () => {
    step.value = SAMPLED_STEPS.indexOf(state.step);
    layer.value = state.layer;
    stepText.textContent = formatInteger(state.step);
    layerText.textContent = formatInteger(state.layer);
  };
  const view = element(
    "select",
    {
      "aria-label": "view",
      onchange: () => {
        state.view = view.value;
        redrawAll();
      },
    },
    ...Object.entries(VIEWS).map(([key, { label }]) => element("option", { value: key }, label)),
  );
  return element(
    "div",
    { class: "card controls" },
    element("label", {}, "Step", step, stepText, playButton()),
    element("label", {}, "Layer", layer, layerText),
    element("label", {}, "Show", view),
  );
}

function playButton() {
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶";
  };
  const button = element(
    "button",
    {
      type: "button",
      title: "play the run through",
      "aria-label": "play",
      onclick: () => {
        if (timer !== null) {
          stop();
          return;
        }
        let at = SAMPLED_STEPS.indexOf(state.step);
        if (at >= SAMPLED_STEPS.length - 1) at = -1;
        button.textContent = "❚❚";
        timer = setInterval(
          () => {
            at += 1;
            choosePlace(SAMPLED_STEPS[at], state.layer);
            if (at >= SAMPLED_STEPS.length - 1) stop();
          },
          Math.max(40, Math.min(200, 8000 / SAMPLED_STEPS.length)),
        );
      },
    },
    "▶",
  );
  return button;
}

function depthSection() {
  if (!MATRICES.length) return [];
  state.step = SAMPLED_STEPS[SAMPLED_STEPS.length - 1];
  state.layer = Math.floor((DEEPEST - 1) / 2);
  const panels = Object.keys(DATA.signals).map((signal) => new Panel(signal));
  const jumps =
    panels.length > 2
      ? element(
          "div",
          { class: "chips" },
          ...panels.map((panel) =>
            element(
              "button",
              { type: "button", onclick: () => panel.node.scrollIntoView() },
              DATA.signals[panel.signal].title,
            ),
          ),
        )
      : null;
  const bar = controls();
  showPlace();
  return [
    element(
      "div",
      {},
      element(
        "div",
        { class: "row section-head" },
        element("h2", {}, "Over depth"),
        jumps,
        element("span", { class: "sub" }, "Click in a map or plot to choose a step and a layer."),
      ),
      bar,
      ...panels.map((panel) => panel.node),
    ),
  ];
}
