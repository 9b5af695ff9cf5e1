// A panel: one signal's heat maps, the profile over depth, the history of a layer and, where it has them, its heads.

// Which part of a layer a row group is: "" for whole layers, EDGES for what stands once, outside the layers.
const EDGES = "once";
const PARTS = ["", "self_attention", "cross_attention", "ffn", "norms", "gains", EDGES];
const partOf = (group, layers) => (layers === 1 ? EDGES : group.split(".").slice(1).join("."));
const partName = (part) =>
  part === "" ? "whole layers" : part === EDGES ? "embeddings, head" : part === ALL ? "all" : words(part);
const ALL = "all";
const words = (text) => (text === "ffn" ? "FFN" : text.replaceAll(".", " · ").replaceAll("_", " "));
const groupName = (group) => group.split(".").map(words).join(" · ");

class Panel {
  constructor(signal) {
    this.signal = signal;
    this.about = DATA.signals[signal];
    this.matrices = MATRICES.filter((matrix) => matrix.signal === signal);
    const deep = this.matrices.some((matrix) => matrix.layers > 1);
    for (const matrix of this.matrices) matrix.part = deep ? partOf(matrix.group, matrix.layers) : "";
    const known = (part) => (PARTS.includes(part) ? PARTS.indexOf(part) : PARTS.length - 1.5);
    const parts = [...new Set(this.matrices.map((matrix) => matrix.part))];
    this.parts = parts.sort((a, b) => known(a) - known(b));
    if (this.parts.length > 2) this.parts.push(ALL);
    this.node = element("div", { class: "panel", id: `signal-${signal}`, hidden: true });
  }

  // What the reader chose, as far as this signal has it.
  get part() {
    return this.parts.includes(state.part) ? state.part : this.parts[0];
  }
  get shown() {
    const chosen = (matrix) => this.part === ALL || matrix.part === this.part;
    return this.matrices.filter((matrix) => visible(matrix) && chosen(matrix));
  }
  get groups() {
    return [...new Set(this.shown.map((matrix) => matrix.group))];
  }

  // Built when it is first shown: a page has dozens of panels, of which a reader looks at a few.
  show(on) {
    this.node.hidden = !on;
    if (!on) return;
    if (!this.node.childNodes.length) this.build();
    redrawAll();
  }

  build() {
    this.gradient = element("canvas", { "aria-hidden": "true" });
    this.ends = [element("span"), element("span")];
    this.scaleBar = element(
      "div",
      { class: "scale" },
      this.ends[0],
      this.gradient,
      this.ends[1],
      element("span", {}, swatch(BAD, true), "no finite value"),
    );
    this.maps = element("div");
    this.legend = element("div", { class: "legend depth-legend" });
    drawings.push(this); // before its maps, which use its colour scale
    this.node.append(
      element(
        "div",
        { class: "row" },
        element("h3", {}, this.about.title, " ", element("span", { class: "unit" }, this.about.unit)),
        this.scaleBar,
      ),
      element("div", { class: "about" }, this.about.text),
      this.parts.length > 1 ? this.partButtons() : "",
      this.maps,
      this.legend,
      this.plots(),
      this.foot(),
    );
  }

  partButtons() {
    const buttons = this.parts.map((part) => [
      part,
      element(
        "button",
        {
          type: "button",
          class: "small",
          onclick: () => {
            state.part = part;
            redrawAll();
          },
        },
        partName(part),
      ),
    ]);
    this.markPart = () =>
      buttons.forEach(([part, node]) => node.setAttribute("aria-pressed", String(part === this.part)));
    return element(
      "div",
      { class: "chips parts", role: "group", "aria-label": "part of the layer" },
      ...buttons.map(([, node]) => node),
    );
  }

  draw() {
    if (this.node.hidden) return;
    this.markPart?.();
    const deep = this.shown.filter((matrix) => matrix.layers > 1);
    this.scale = new ColorScale(deep);
    this.scale.legend(this.gradient);
    const { low, high, cut } = this.scale;
    this.ends[0].textContent = (cut ? "≤ " : "") + formatNumber(this.scale.end(low), 3);
    this.ends[1].textContent = (cut ? "≥ " : "") + formatNumber(this.scale.end(high), 3);
    this.scaleBar.hidden = this.maps.hidden = !deep.length;
    const now = deep.map((matrix) => `${matrix.run} ${matrix.group}`).join();
    if (this.mapped !== now) {
      this.mapped = now;
      this.layMaps(deep);
      this.legend.replaceChildren(...this.legendItems());
    }
  }

  // One row a run; the maps are kept, since each is in `drawings` for good.
  layMaps(deep) {
    this.kept ??= new Map();
    const map = (matrix) => {
      if (!this.kept.has(matrix)) {
        const host = new HeatMap(matrix, this, COMPARED ? 190 : 240).host;
        const name = element("div", { class: "name", title: matrix.group }, groupName(matrix.group));
        this.kept.set(matrix, element("div", { class: "map" }, name, host));
      }
      return this.kept.get(matrix);
    };
    const rows = [...new Set(deep.map((matrix) => matrix.run))].map((run) => {
      const name = element("div", { class: "run-name" }, runSwatch(run), RUNS[run].label);
      const maps = deep.filter((matrix) => matrix.run === run).map(map);
      return element("div", {}, COMPARED ? name : null, element("div", { class: "maps" }, ...maps));
    });
    this.maps.replaceChildren(...rows);
  }

  // Of one run every group is a colour; of several runs every run is a colour, and every group a dash.
  style(matrix) {
    const group = this.groups.indexOf(matrix.group);
    const dash = COMPARED ? group : Math.floor(group / LINES_LIGHT.length);
    return {
      name: COMPARED ? this.lineName(matrix) : groupName(matrix.group),
      color: lineColor(COMPARED ? matrix.run : group),
      dash: DASHES[dash % DASHES.length],
    };
  }
  lineName(matrix) {
    return `${RUNS[matrix.run].label}${this.groups.length > 1 ? ", " + groupName(matrix.group) : ""}`;
  }

  legendItems() {
    if (COMPARED) {
      const dashes = this.groups.map((group, i) =>
        element("span", {}, `${["──", "╌╌", "┈┈", "─ ·"][i % DASHES.length]} ${groupName(group)}`),
      );
      return [...runLegend(), ...(this.groups.length > 1 ? dashes : [])];
    }
    return this.groups.map((group, index) => legendItem(() => lineColor(index), groupName(group)));
  }

  depthLines() {
    return this.shown
      .filter((matrix) => matrix.layers > 1 && matrix.reaches(state.step))
      .map((matrix) => ({
        ...this.style(matrix),
        xs: Array.from({ length: matrix.layers }, (_, i) => i),
        ys: matrix.profile(nearest(matrix.steps, state.step)),
      }));
  }

  timeLines() {
    return this.shown.flatMap((matrix) => {
      const layer = matrix.layers === 1 ? 0 : state.layer;
      if (layer >= matrix.layers) return [];
      const line = { ...this.style(matrix), xs: matrix.steps, ys: matrix.history(layer) };
      if (!matrix.heads || COMPARED || state.view !== "value") return [line];
      const heads = Array.from({ length: matrix.heads.count }, (_, head) => ({
        ...line,
        faint: true,
        silent: true,
        xs: matrix.heads.steps,
        ys: matrix.heads.history(layer, head),
      }));
      return [...heads, line];
    });
  }

  headLines() {
    return this.shown
      .filter((matrix) => matrix.heads && state.layer < matrix.layers)
      .map((matrix) => ({
        ...this.style(matrix),
        points: true,
        xs: Array.from({ length: matrix.heads.count }, (_, i) => i),
        ys: matrix.heads.of(state.layer, state.step),
      }));
  }

  plots() {
    const plot = (title, over, lines, more) => {
      const place = element("span");
      const own = new Plot({
        label: `${this.about.title}: ${title}`,
        height: 216,
        xLabel: over,
        over,
        showsChoice: true,
        lines: () => (this.node.hidden ? [] : lines()),
        ...more,
      });
      drawings.push({
        showsChoice: true,
        draw: () => {
          const [at, layer] = [formatInteger(state.step), formatInteger(state.layer)];
          place.textContent =
            over === "layer"
              ? `at step ${at}`
              : over === "step"
                ? this.ofLayer(layer)
                : `of layer ${layer} at step ${at}`;
        },
      });
      const head = element("h3", {}, `${title} `, element("span", { class: "unit" }, place));
      return element("div", {}, element("div", { class: "plot-head" }, head, own.toggle()), own.host);
    };
    const deep = this.matrices.some((matrix) => matrix.layers > 1),
      heads = this.matrices.some((matrix) => matrix.heads);
    return element(
      "div",
      { class: "profiles" },
      deep
        ? plot("Over depth", "layer", () => this.depthLines(), {
            mark: () => state.layer,
            pick: (x) => choosePlace(state.step, Math.round(x)),
          })
        : null,
      plot("Over time", "step", () => this.timeLines(), {
        mark: () => state.step,
        pick: (x) => choosePlace(x, state.layer),
      }),
      heads ? plot("Heads", "head", () => this.headLines(), {}) : null,
    );
  }
  ofLayer(layer) {
    return this.part === EDGES ? "" : `of layer ${layer}`;
  }

  foot() {
    const most = Math.max(...this.matrices.map((matrix) => matrix.sampled));
    const shown = Math.max(...this.matrices.map((matrix) => matrix.steps.length));
    const samples =
      shown < most
        ? `${formatInteger(shown)} of ${formatInteger(most)} sampled steps, evenly spread`
        : plural(most, "sampled step");
    const worst = { high: "largest value", low: "smallest value", size: "value farthest from 0" }[this.about.worst];
    const heads = this.matrices.some((matrix) => matrix.heads);
    const text = `${samples}. Layer 0 is the lowest. Where a pixel covers several layers or steps${
      heads ? ", and for a layer's heads," : ""
    } the maps show the ${worst}.`;
    return element("div", { class: "foot" }, text);
  }
}
