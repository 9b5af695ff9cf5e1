// Depth signals: 16-bit codes to values, values to ratios, ratios to pixels.

// The inverse of pretrain.analysis.compact.pack_matrix; values[row * columns + column], a row is a sampled step.
function decode(matrix) {
  const bytes = Uint8Array.from(atob(matrix.codes), (character) => character.charCodeAt(0));
  const codes = new DataView(bytes.buffer),
    values = new Float64Array(matrix.rows * matrix.columns);
  const first = 2,
    last = 65533,
    special = { 0: NaN, 1: 0, 65534: -Infinity, 65535: Infinity };
  for (let i = 0; i < values.length; i++) {
    const code = codes.getUint16(2 * i, true);
    if (code in special) {
      values[i] = special[code];
      continue;
    }
    const share = (code - first) / (last - first),
      value = matrix.low * (1 - share) + matrix.high * share;
    values[i] = matrix.scale === "log" ? Math.exp(value) : value;
  }
  return values;
}

function median(values) {
  const sorted = values.filter(Number.isFinite).sort();
  return sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : NaN;
}

// A signal's values of one row group in the reader's choice of view; each view is computed when first asked for.
class Matrix {
  constructor(packed, run) {
    Object.assign(this, {
      run,
      signal: packed.signal,
      group: packed.group,
      steps: packed.steps,
      sampled: packed.sampled,
      layers: packed.columns,
    });
    this.views = { value: decode(packed) };
  }

  values(view = state.view) {
    return (this.views[view] ??= view === "first" ? this.growth() : this.evenness());
  }

  growth() {
    // over the layer's own first sample
    const value = this.views.value;
    return value.map((v, i) => v / value[i % this.layers]);
  }

  evenness() {
    // over the median layer of the same step
    const value = this.views.value;
    const medians = this.steps.map((_, row) => median(value.slice(row * this.layers, (row + 1) * this.layers)));
    return value.map((v, i) => v / medians[Math.floor(i / this.layers)]);
  }

  at(row, layer) {
    return this.values()[row * this.layers + layer];
  }
  profile(row) {
    return this.values().subarray(row * this.layers, (row + 1) * this.layers);
  }
  history(layer) {
    return Float64Array.from(this.steps, (_, row) => this.at(row, layer));
  }
}

// The colour scale that all maps of a signal share. Logarithmic unless something is negative; ratios lie evenly
// around one. A range of many decades is cut to where nearly all values are, and the legend says so.
class ColorScale {
  constructor(matrices) {
    const all = [];
    let negative = false;
    for (const matrix of matrices) {
      const values = matrix.values(),
        stride = Math.max(1, Math.floor(values.length / 60000));
      for (let i = 0; i < values.length; i += stride) {
        if (Number.isFinite(values[i]) && values[i] !== 0) {
          all.push(values[i]);
          negative ||= values[i] < 0;
        }
      }
    }
    this.log = !negative;
    const sizes = Float64Array.from(all, (v) => (this.log ? Math.log(v) : v)).sort();
    let [low, high] = sizes.length ? [sizes[0], sizes[sizes.length - 1]] : [0, 1];
    this.cut = this.log && high - low > Math.log(1e6);
    if (this.cut) [low, high] = [0.005, 0.995].map((share) => sizes[Math.round(share * (sizes.length - 1))]);
    if (state.view !== "value" && this.log) {
      high = Math.max(Math.abs(low), Math.abs(high), Math.log(1.1));
      low = -high;
    }
    if (high - low < 1e-9) {
      low -= 0.05;
      high += 0.05;
    }
    Object.assign(this, { low, high, table: colorTable(state.view) });
  }

  index(value) {
    const at = this.log ? Math.log(value) : value; // log of zero is -Infinity: the lowest colour
    return Math.max(0, Math.min(255, Math.round(((at - this.low) / (this.high - this.low)) * 255)));
  }
  end(at) {
    return this.log ? Math.exp(at) : at;
  }

  legend(canvas) {
    canvas.width = 256;
    canvas.height = 1;
    const context = canvas.getContext("2d"),
      image = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) image.data.set([...this.table.subarray(i * 3, i * 3 + 3), 255], i * 4);
    context.putImageData(image, 0, 0);
  }
}

const BAD_COLOR = [1, 3, 5].map((i) => parseInt(BAD.slice(i, i + 2), 16));

// Depth upwards, steps to the right. A pixel that covers several cells shows the largest of them (of ratios the one
// farthest from one), so that a single bad layer of a thousand is never averaged away.
class HeatMap extends Canvas {
  constructor(matrix, panel, height) {
    super(height, `${matrix.group}: heat map over layers and steps`, { left: 44, right: 8, top: 6, bottom: 34 });
    Object.assign(this, { matrix, panel });
    this.listen();
  }

  // Steps from which to which the samples reach: half a gap beyond the first and the last.
  get reach() {
    const { steps } = this.matrix,
      last = steps.length - 1;
    if (last === 0) return [-Infinity, Infinity];
    return [steps[0] - (steps[1] - steps[0]) / 2, steps[last] + (steps[last] - steps[last - 1]) / 2];
  }
  toX(step) {
    const { x0, x1 } = this.box,
      [a, b] = stepRange();
    return x0 + ((step - a) / (b - a)) * (x1 - x0);
  }
  fromX(px) {
    const { x0, x1 } = this.box,
      [a, b] = stepRange();
    return a + ((px - x0) / (x1 - x0)) * (b - a);
  }
  toY(layer) {
    const { y0, y1 } = this.box;
    return y1 - ((layer + 0.5) / this.matrix.layers) * (y1 - y0);
  }

  draw() {
    const context = this.context(this.below),
      { x0, x1, y0, y1 } = this.box,
      ratio = window.devicePixelRatio || 1;
    const width = Math.round((x1 - x0) * ratio),
      height = Math.round((y1 - y0) * ratio);
    if (width < 1) return;
    context.putImageData(this.image(context, width, height), Math.round(x0 * ratio), Math.round(y0 * ratio));
    const columns = Math.max(3, Math.round((x1 - x0) / 70)),
      rows = Math.max(2, Math.round((y1 - y0) / 38));
    const xs = integerTicks(...stepRange(), columns).map((tick) => [tick, this.toX(tick)]);
    const ys = integerTicks(0, this.matrix.layers - 1, rows).map((tick) => [tick, this.toY(tick)]);
    context.fillStyle = css("--soft");
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const [tick, y] of ys) context.fillText(formatInteger(tick), x0 - 5, y);
    this.axes(context, xs, [], "step", formatInteger);
    context.save();
    context.translate(8, (y0 + y1) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = css("--faint");
    context.fillText("layer", 0, 0);
    context.restore();
    drawEvents(context, this.box, (step) => this.toX(step), false);
    this.drawCursor();
  }

  image(context, width, height) {
    const { matrix } = this,
      scale = this.panel.scale,
      values = matrix.values(),
      { steps, layers } = matrix;
    const image = context.createImageData(width, height),
      [a, b] = stepRange(),
      [from, to] = this.reach;
    const size = scale.log && state.view !== "value" ? (v) => Math.abs(Math.log(v)) : (v) => v;
    for (let column = 0; column < width; column++) {
      const left = a + (column / width) * (b - a),
        right = a + ((column + 1) / width) * (b - a);
      if (right < from || left > to) continue;
      const row0 = nearest(steps, left),
        row1 = nearest(steps, right);
      for (let line = 0; line < height; line++) {
        const low = Math.floor(((height - 1 - line) / height) * layers);
        const high = Math.max(low + 1, Math.ceil(((height - line) / height) * layers - 1e-9));
        let worst = values[row0 * layers + low],
          bad = false;
        for (let row = row0; row <= row1; row++) {
          for (let layer = low; layer < high; layer++) {
            const value = values[row * layers + layer];
            bad ||= !Number.isFinite(value);
            if (size(value) > size(worst)) worst = value;
          }
        }
        const color = bad ? BAD_COLOR : scale.table.subarray(scale.index(worst) * 3, scale.index(worst) * 3 + 3);
        image.data.set(color, (line * width + column) * 4);
        image.data[(line * width + column) * 4 + 3] = 255;
      }
    }
    return image;
  }

  drawCursor() {
    const context = this.context(this.above),
      { x0, x1, y0, y1 } = this.box;
    if (x1 <= x0) return;
    const mark = (xa, ya, xb, yb, dash) => {
      context.setLineDash(dash);
      for (const [color, wide] of [
        ["#000a", 3],
        ["#fff", 1],
      ]) {
        context.strokeStyle = color;
        context.lineWidth = wide;
        line(context, xa, ya, xb, yb);
      }
    };
    const step = this.toX(this.matrix.steps[nearest(this.matrix.steps, state.step)]);
    if (step >= x0 && step <= x1) mark(crisp(step - 0.5), y0, crisp(step - 0.5), y1, []);
    if (state.layer < this.matrix.layers)
      mark(x0, crisp(this.toY(state.layer) - 0.5), x1, crisp(this.toY(state.layer) - 0.5), []);
    if (state.hover === null) return;
    const hover = this.toX(state.hover);
    if (hover >= x0 && hover <= x1) mark(crisp(hover - 0.5), y0, crisp(hover - 0.5), y1, [2, 2]);
  }

  // The sampled step and the layer under the pointer; null outside the map.
  cell(event) {
    const [px, py] = this.point(event),
      { x0, x1, y0, y1 } = this.box;
    if (px < x0 || px > x1 || py < y0 || py > y1) return null;
    const layer = Math.min(this.matrix.layers - 1, Math.floor(((y1 - py) / (y1 - y0)) * this.matrix.layers));
    return { row: nearest(this.matrix.steps, this.fromX(px)), layer: Math.max(0, layer) };
  }

  listen() {
    let down = false;
    const choose = (event) => {
      const cell = this.cell(event);
      if (cell) choosePlace(this.matrix.steps[cell.row], cell.layer);
    };
    this.host.addEventListener("pointerdown", (event) => {
      down = event.button === 0;
      if (down) {
        this.host.setPointerCapture(event.pointerId);
        choose(event);
      }
    });
    this.host.addEventListener("pointerup", () => {
      down = false;
    });
    this.host.addEventListener("pointermove", (event) => {
      if (down) choose(event);
      this.hover(event);
    });
    this.host.addEventListener("pointerleave", () => {
      hideTooltip();
      state.hover = null;
      redrawCursor();
    });
  }

  hover(event) {
    const cell = this.cell(event);
    if (!cell) {
      hideTooltip();
      return;
    }
    const { matrix } = this,
      step = matrix.steps[cell.row];
    const value = matrix.values("value")[cell.row * matrix.layers + cell.layer];
    const rows = [
      ["layer", formatInteger(cell.layer)],
      ["step", formatInteger(step)],
      [this.panel.unit || "value", formatNumber(value, 4)],
    ];
    if (state.view !== "value")
      rows.push([VIEWS[state.view].short, formatNumber(matrix.at(cell.row, cell.layer), 4)]);
    showTooltip(
      event,
      element(
        "b",
        {},
        COMPARED ? `${RUNS[matrix.run].label} · ${groupName(matrix.group)}` : groupName(matrix.group),
      ),
      element(
        "table",
        {},
        ...rows.map(([key, text]) => element("tr", {}, element("td", {}, key), element("td", {}, text))),
      ),
    );
    state.hover = step;
    redrawCursor();
  }
}

const groupName = (group) => group.replaceAll(".", " · ").replaceAll("_", " ");

const VIEWS = {
  value: { label: "values", short: "value" },
  first: { label: "growth: ÷ the layer's first sample", short: "÷ first sample" },
  even: { label: "evenness: ÷ the median layer", short: "÷ median layer" },
};
