// Heat maps over layers and steps.

const BAD_COLOR = [1, 3, 5].map((i) => parseInt(BAD.slice(i, i + 2), 16));

// How bad a value is: which of several cells under one pixel, or of several heads, is the one to show.
const BADNESS = { high: (v) => v, low: (v) => -v, size: Math.abs };

// Depth upwards, steps to the right. A pixel that covers several cells shows the worst of them (of ratios the one
// farthest from one), so that a single bad layer of a thousand is never averaged away.
class HeatMap extends Canvas {
  constructor(matrix, panel, height) {
    super(height, `${matrix.group}: heat map over layers and steps`, { left: 44, right: 8, top: 6, bottom: 34 });
    Object.assign(this, { matrix, panel });
    this.listen();
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
    for (const [tick, y] of ys) context.fillText(formatInteger(tick), x0 - 9, y);
    this.axes(context, xs, [], "step", formatInteger);
    context.save();
    context.translate(8, (y0 + y1) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = css("--faint");
    context.fillText("layer", 0, 0);
    context.restore();
    drawEvents(context, this.box, (step) => this.toX(step), this.matrix.run);
    this.drawCursor();
  }

  image(context, width, height) {
    const { matrix } = this,
      scale = this.panel.scale,
      values = matrix.values(),
      { steps, layers } = matrix;
    const image = context.createImageData(width, height),
      [a, b] = stepRange(),
      [from, to] = this.matrix.reach;
    const worst = BADNESS[DATA.signals[matrix.signal].worst];
    const size = scale.log && state.view !== "value" ? (v) => Math.abs(Math.log(v)) : worst;
    for (let column = 0; column < width; column++) {
      const left = a + (column / width) * (b - a),
        right = a + ((column + 1) / width) * (b - a);
      if (right < from || left > to) continue;
      const row0 = nearest(steps, left),
        row1 = nearest(steps, right);
      for (let line = 0; line < height; line++) {
        const low = Math.floor(((height - 1 - line) / height) * layers);
        const high = Math.max(low + 1, Math.ceil(((height - line) / height) * layers - 1e-9));
        let shown = values[row0 * layers + low],
          bad = false;
        for (let row = row0; row <= row1; row++) {
          for (let layer = low; layer < high; layer++) {
            const value = values[row * layers + layer];
            bad ||= !Number.isFinite(value);
            if (size(value) > size(shown)) shown = value;
          }
        }
        const color = bad ? BAD_COLOR : scale.table.subarray(scale.index(shown) * 3, scale.index(shown) * 3 + 3);
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
    if (state.layer < this.matrix.layers) this.markLayer(context, this.toY(state.layer));
    if (state.hover === null) return;
    const hover = this.toX(state.hover);
    if (hover >= x0 && hover <= x1) mark(crisp(hover - 0.5), y0, crisp(hover - 0.5), y1, [2, 2]);
  }

  // Arrows beside the map and a sparse line over it: the chosen layer's own colours are to be seen.
  markLayer(context, y) {
    const { x0, x1 } = this.box;
    context.fillStyle = css("--cursor");
    for (const [tip, tail] of [
      [x0 - 1, x0 - 7],
      [x1 + 1, x1 + 7],
    ]) {
      context.beginPath();
      context.moveTo(tip, y);
      context.lineTo(tail, y - 4);
      context.lineTo(tail, y + 4);
      context.fill();
    }
    context.setLineDash([2, 10]);
    context.strokeStyle = "#fff";
    context.lineWidth = 1;
    line(context, x0, crisp(y - 0.5), x1, crisp(y - 0.5));
    context.setLineDash([]);
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
      [this.panel.about.unit || "value", formatNumber(value, 4)],
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
      ...eventLines((at) => Math.abs(this.toX(at) - this.point(event)[0]), this.matrix.run),
    );
    state.hover = step;
    redrawCursor();
  }
}
