// Line plots on two canvases: the lines below, what follows the pointer above.

const MARGIN = { left: 58, right: 12, top: 16, bottom: 34 };

class Canvas {
  constructor(height, label, margin = MARGIN) {
    this.margin = margin;
    this.height = height;
    this.below = element("canvas", { role: "img", "aria-label": label });
    this.above = element("canvas", { "aria-hidden": "true" });
    this.host = element("div", { class: "canvas-host", style: `height:${height}px` }, this.below, this.above);
    new ResizeObserver(() => {
      if (this.host.clientWidth !== this.width) this.draw();
    }).observe(this.host);
    drawings.push(this);
  }

  // A cleared context in CSS pixels.
  context(canvas) {
    this.width = this.host.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.width * ratio)),
      height = Math.round(this.height * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.font = "11px system-ui, sans-serif";
    return context;
  }

  get box() {
    const { left, right, top, bottom } = this.margin;
    return { x0: left, x1: this.width - right, y0: top, y1: this.height - bottom };
  }

  point(event) {
    const frame = this.host.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  axes(context, xs, ys, xLabel, yFormat) {
    const { x0, x1, y0, y1 } = this.box;
    context.lineWidth = 1;
    context.strokeStyle = css("--grid");
    context.fillStyle = css("--soft");
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [tick, y] of ys) {
      line(context, x0, crisp(y), x1, crisp(y));
      context.fillText(yFormat(tick), x0 - 7, y);
    }
    context.textBaseline = "top";
    context.textAlign = "center";
    for (const [tick, x] of xs) {
      const text = formatInteger(tick),
        half = context.measureText(text).width / 2;
      context.strokeStyle = css("--faint");
      line(context, crisp(x), y1, crisp(x), y1 + 4);
      context.fillText(text, Math.min(Math.max(x, half), this.width - half - 1), y1 + 7);
    }
    context.fillStyle = css("--faint");
    context.fillText(xLabel, (x0 + x1) / 2, y1 + 20);
    context.strokeStyle = css("--faint");
    line(context, x0, crisp(y1), x1, crisp(y1));
  }
}

const crisp = (value) => Math.round(value) + 0.5;
function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

// `options`: label, height, xLabel, over ("step", "layer" or "head"), lines() -> [{name, color, dash, xs, ys, faint, dots,
// bad, silent}], level() -> {value, label} or null, pick(x), zero (the y axis starts at 0), least (it reaches at least so far), log (null: by the data).
class Plot extends Canvas {
  constructor(options) {
    super(options.height, options.label);
    this.options = options;
    this.log = options.log ?? null;
    this.showsChoice = Boolean(options.showsChoice);
    this.listen();
  }

  toggle() {
    // the button that turns the y axis logarithmic
    this.button = element(
      "button",
      {
        class: "small",
        type: "button",
        title: "logarithmic y axis",
        onclick: () => {
          this.log = !this.isLog;
          this.draw();
        },
      },
      "log",
    );
    return this.button;
  }

  measure() {
    const options = this.options;
    this.lines = options.lines();
    let [x0, x1] =
      options.over === "step"
        ? stepRange()
        : [0, Math.max(1, ...this.lines.map((l) => l.xs[l.xs.length - 1] ?? 0))];
    let low = Infinity,
      high = -Infinity,
      smallest = Infinity;
    const take = (y) => {
      if (!Number.isFinite(y)) return;
      low = Math.min(low, y);
      high = Math.max(high, y);
      if (y > 0) smallest = Math.min(smallest, y);
    };
    for (const { xs, ys } of this.lines)
      for (let i = 0; i < xs.length; i++) if (xs[i] >= x0 && xs[i] <= x1) take(ys[i]);
    const level = options.level?.();
    if (level && low <= high) take(level.value);
    this.blank = low > high;
    if (this.blank) [low, high] = [0, 1];
    high = Math.max(high, options.least ?? high);
    this.isLog = smallest < Infinity && (this.log ?? (low > 0 && high / low > 20));
    if (this.isLog) {
      const span = Math.max(Math.log(high / smallest), 0.1) * 0.06;
      this.y = [Math.log(smallest) - span, Math.log(high) + span];
    } else {
      if (options.zero && low > 0) low = 0;
      const span = (high - low || Math.abs(high) * 0.1 || 1) * 0.06;
      this.y = [low === 0 && options.zero ? 0 : low - span, high + span];
    }
    this.x = [x0, x1];
  }

  toX(x) {
    const { x0, x1 } = this.box;
    return x0 + ((x - this.x[0]) / (this.x[1] - this.x[0])) * (x1 - x0);
  }
  toY(y) {
    const { y0, y1 } = this.box;
    return y1 - (((this.isLog ? Math.log(y) : y) - this.y[0]) / (this.y[1] - this.y[0])) * (y1 - y0);
  }
  fromX(px) {
    const { x0, x1 } = this.box;
    return this.x[0] + ((px - x0) / (x1 - x0)) * (this.x[1] - this.x[0]);
  }

  draw() {
    const context = this.context(this.below),
      box = this.box;
    if (box.x1 <= box.x0) return;
    this.measure();
    this.button?.setAttribute("aria-pressed", String(this.isLog));
    const rows = Math.max(2, Math.round((box.y1 - box.y0) / 38)),
      columns = Math.max(3, Math.round((box.x1 - box.x0) / 80));
    const [low, high] = this.isLog ? this.y.map(Math.exp) : this.y;
    const ys = (this.isLog ? logTicks : linearTicks)(low, high, rows).map((tick) => [tick, this.toY(tick)]);
    const xs = integerTicks(this.x[0], this.x[1], columns).map((tick) => [tick, this.toX(tick)]);
    const even = !this.isLog || Math.log10(high / low) < 0.8;
    const format = even ? tickFormat(ys.map(([tick]) => tick)) : (tick) => formatNumber(tick, 3);
    this.axes(context, xs, this.blank ? [] : ys, this.options.xLabel, format);
    if (this.options.over === "step") drawEvents(context, box, (x) => this.toX(x), null);
    context.save();
    context.beginPath();
    context.rect(box.x0 - 1, box.y0 - 1, box.x1 - box.x0 + 2, box.y1 - box.y0 + 2);
    context.clip();
    this.lines.forEach((entry) => this.drawLine(context, entry));
    context.restore();
    this.drawLevel(context);
    this.drawCursor();
  }

  drawLevel(context) {
    const level = this.options.level?.();
    if (!level) return;
    const { x0, x1 } = this.box,
      y = this.toY(level.value);
    context.strokeStyle = context.fillStyle = css("--soft");
    context.setLineDash([5, 4]);
    line(context, x0, crisp(y), x1, crisp(y));
    context.setLineDash([]);
    context.textAlign = "right";
    context.textBaseline = "bottom";
    context.strokeStyle = css("--card"); // a halo, so that a curve does not cross the words
    context.lineWidth = 5;
    context.strokeText(level.label, x1 - 4, y - 3);
    context.fillText(level.label, x1 - 4, y - 3);
  }

  drawLine(context, { xs, ys, color, dash, faint, dots, points, bad }) {
    context.strokeStyle = context.fillStyle = color;
    context.globalAlpha = faint ? 0.28 : 1;
    context.lineWidth = faint ? 1 : 1.6;
    context.lineJoin = "round";
    context.setLineDash(dash ?? []);
    context.beginPath();
    let down = false;
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i]) || (this.isLog && ys[i] <= 0)) {
        down = false;
        continue;
      }
      if (down) context.lineTo(this.toX(xs[i]), this.toY(ys[i]));
      else context.moveTo(this.toX(xs[i]), this.toY(ys[i]));
      down = true;
    }
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
    if (dots || points || xs.length === 1) {
      for (let i = 0; i < xs.length; i++) {
        if (!Number.isFinite(ys[i])) continue;
        context.beginPath();
        context.arc(this.toX(xs[i]), this.toY(ys[i]), 3.4, 0, 7);
        context.fill();
        context.strokeStyle = css("--card");
        context.stroke();
      }
    }
    context.fillStyle = css("--bad"); // not finite: there is no height to draw it at, so it hangs from the top
    for (const x of bad ?? []) context.fillRect(this.toX(x) - 1, this.box.y0, 2, 8);
  }

  drawCursor() {
    const context = this.context(this.above),
      { x0, x1, y0, y1 } = this.box;
    if (!this.x || x1 <= x0) return;
    const mark = (x, dash) => {
      if (x === null || x === undefined || x < this.x[0] || x > this.x[1]) return;
      context.strokeStyle = css("--cursor");
      context.globalAlpha = 0.55;
      context.setLineDash(dash);
      line(context, crisp(this.toX(x) - 0.5), y0, crisp(this.toX(x) - 0.5), y1);
      context.globalAlpha = 1;
    };
    if (this.options.mark) mark(this.options.mark(), []);
    if (this.options.over === "step") mark(state.hover, [2, 2]);
    if (this.drag) {
      context.setLineDash([]);
      context.globalAlpha = 0.18;
      context.fillStyle = css("--accent");
      context.fillRect(Math.min(...this.drag), y0, Math.abs(this.drag[1] - this.drag[0]), y1 - y0);
      context.globalAlpha = 1;
    }
  }

  listen() {
    const host = this.host,
      steps = this.options.over === "step";
    host.addEventListener("pointermove", (event) => {
      const [px] = this.point(event);
      if (this.drag) this.drag[1] = Math.min(Math.max(px, this.box.x0), this.box.x1);
      this.hover(event, this.fromX(px));
    });
    host.addEventListener("pointerleave", () => {
      hideTooltip();
      if (steps) {
        state.hover = null;
        redrawCursor();
      }
    });
    host.addEventListener("pointerdown", (event) => {
      const [px] = this.point(event);
      if (event.button !== 0 || event.pointerType === "touch") return;
      this.drag = [px, px];
      host.setPointerCapture(event.pointerId);
    });
    host.addEventListener("pointerup", (event) => {
      const drag = this.drag;
      this.drag = null;
      if (!drag) return;
      const [from, to] = [Math.min(...drag), Math.max(...drag)].map((px) => this.fromX(px));
      if (steps && Math.abs(drag[1] - drag[0]) > 6)
        setRange([Math.max(from, FULL_RANGE[0]), Math.min(to, FULL_RANGE[1])]);
      else this.options.pick?.(this.fromX(this.point(event)[0]));
      redrawCursor();
    });
    if (steps) host.addEventListener("dblclick", () => setRange(null));
  }

  hover(event, x) {
    if (!this.x || x < this.x[0] - 0.5 || x > this.x[1] + 0.5) {
      hideTooltip();
      return;
    }
    const steps = this.options.over === "step",
      rows = [];
    let at = null;
    for (const entry of this.lines.filter((l) => !l.silent)) {
      const i = nearest(entry.xs, x);
      if (i < 0 || (entry.dots && Math.abs(this.toX(entry.xs[i]) - this.toX(x)) > 8)) continue;
      if (at === null || Math.abs(entry.xs[i] - x) < Math.abs(at - x)) at = entry.xs[i];
      rows.push(
        element(
          "tr",
          {},
          element("td", {}, swatch(entry.color, entry.dots), entry.name),
          element("td", {}, formatNumber(entry.ys[i], 4)),
        ),
      );
    }
    if (at === null) {
      hideTooltip();
      return;
    }
    showTooltip(
      event,
      element("b", {}, `${this.options.over} ${formatInteger(at)}`),
      element("table", {}, ...rows),
      ...(steps ? eventLines((step) => Math.abs(this.toX(step) - this.toX(x)), null) : []),
    );
    if (steps) state.hover = at;
    redrawCursor();
  }
}

function setRange(range) {
  state.range = range;
  document.getElementById("whole")?.toggleAttribute("hidden", range === null);
  redrawAll();
}
