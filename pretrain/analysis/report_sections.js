// The page's sections over depth, each with one panel at a time; the bar with the sliders; the model's update.

const SIGNALS = Object.keys(DATA.signals);

class Section {
  constructor(key) {
    this.key = key;
    this.panels = SIGNALS.filter((signal) => DATA.signals[signal].section === key).map(
      (signal) => new Panel(signal),
    );
    this.tabs = this.panels.map((panel) =>
      element(
        "button",
        { type: "button", class: "tab", role: "tab", onclick: () => this.choose(panel.signal) },
        DATA.signals[panel.signal].title,
        verdictDot(panel.signal),
      ),
    );
    this.node = element(
      "section",
      { id: `section-${key}` },
      element(
        "div",
        { class: "row section-head" },
        element("h2", {}, DATA.sections[key]),
        element("div", { class: "tabs", role: "tablist" }, ...(this.panels.length > 1 ? this.tabs : [])),
      ),
      element("div", { class: "card signal" }, ...this.panels.map((panel) => panel.node)),
    );
    SECTIONS.push(this);
  }

  choose(signal) {
    this.panels.forEach((panel, i) => {
      panel.show(panel.signal === signal);
      this.tabs[i].setAttribute("aria-selected", String(panel.signal === signal));
    });
  }
  // The signal that most asks to be looked at.
  begin() {
    const level = (panel) => worstLevel(panel.signal);
    const [first] = [...this.panels].sort((a, b) => level(b) - level(a));
    this.choose(first.signal);
  }
}
const SECTIONS = [];

function showSignal(signal) {
  const section = SECTIONS.find(({ panels }) => panels.some((panel) => panel.signal === signal));
  section?.choose(signal);
  document.getElementById(`section-${DATA.signals[signal]?.section ?? "steps"}`)?.scrollIntoView();
}

// ---- the model's update beside the bound

const UPDATE_LINES = [
  ["model_update", "since initialisation", []],
  ["model_update_bound", "heuristic bound", [6, 3]],
  ["model_update_step", "since the sample before", [2, 2]],
];

function updateSection() {
  const present = UPDATE_LINES.filter(([signal]) => SIGNALS.includes(signal));
  if (!present.length) return [];
  const lines = () =>
    MATRICES.filter(visible).flatMap((matrix) => {
      const place = UPDATE_LINES.findIndex(([signal]) => signal === matrix.signal);
      if (place < 0) return [];
      const [, name, dash] = UPDATE_LINES[place];
      const group = matrix.group === "model" ? "" : `, ${groupName(matrix.group)}`;
      return {
        name: `${COMPARED ? RUNS[matrix.run].label + ", " : ""}${name}${group}`,
        color: lineColor(COMPARED ? matrix.run : place),
        dash,
        xs: matrix.steps,
        ys: matrix.values("value"),
      };
    });
  const plot = new Plot({
    label: "Model update over steps, with the heuristic bound",
    height: 260,
    xLabel: "step",
    over: "step",
    log: true,
    lines,
    mark: () => state.step,
    showsChoice: true,
    pick: (x) => choosePlace(x, state.layer),
  });
  const legend = present.map(([signal, name, dash]) =>
    COMPARED
      ? element("span", {}, `${["──", "╌╌", "┈┈"][UPDATE_LINES.findIndex(([s]) => s === signal)]} ${name}`)
      : legendItem(() => lineColor(UPDATE_LINES.findIndex(([s]) => s === signal)), name),
  );
  return [
    element(
      "section",
      { id: "section-update" },
      element("div", { class: "row section-head" }, element("h2", {}, DATA.sections.update)),
      element(
        "div",
        { class: "card signal" },
        element(
          "div",
          { class: "plot-head" },
          element("h3", {}, "Model update ", element("span", { class: "unit" }, DATA.signals[present[0][0]].unit)),
          element("div", { class: "legend" }, ...(COMPARED ? runLegend() : []), ...legend),
          plot.toggle(),
        ),
        ...present.map(([signal, name]) =>
          element("div", { class: "about tight" }, element("b", {}, `${name}: `), DATA.signals[signal].text),
        ),
        plot.host,
      ),
    ),
  ];
}

// ---- the bar that stays in sight

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
    { class: "sliders" },
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

// Links to the sections and, if anything was sampled over depth, the sliders.
function bar(sections) {
  const links = sections.map((section) =>
    element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent, sectionDot(section.id)),
  );
  const nav = element("nav", { "aria-label": "sections" }, ...links);
  const node = element("div", { class: "card controls" }, nav, MATRICES.length ? controls() : null);
  if (MATRICES.length) {
    const [worst] = VERDICTS.filter(levelOf);
    const middle = Math.floor((DEEPEST - 1) / 2);
    choosePlace(SAMPLED_STEPS[SAMPLED_STEPS.length - 1], worst?.group ? worst.layer : middle);
  }
  return node;
}

function depthSections() {
  const keys = Object.keys(DATA.sections).filter((key) => key !== "update");
  const present = keys.filter((key) => SIGNALS.some((signal) => DATA.signals[signal].section === key));
  return [...updateSection(), ...present.map((key) => new Section(key).node)];
}
