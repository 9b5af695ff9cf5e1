// The runs' events: what each kind is, its marks on every plot over steps, and the buttons that show and hide them.

// colour, weight, meaning. "tick": a small mark on the axis; "line": a dashed line with its name; "mark": a line and a
// triangle at the top, for what went wrong and what was done about it.
const EVENT_KINDS = {
  start: [2, "line", "the run began"],
  resume: [0, "line", "a session went on from a checkpoint"],
  end: [7, "line", "a session ended"],
  signal: [7, "line", "a session was told to end"],
  canary: [7, "line", "the layout was checked against one process"],
  alert: [1, "mark", "something to look at"],
  skip: [3, "mark", "a step was thrown away; its samples are left out"],
  rollback: [6, "mark", "back to an earlier checkpoint; the shaded steps were made again"],
  rate: [5, "mark", "the learning rate was lowered for some steps"],
  stop: [1, "mark", "the policy ended the run"],
  crash: [1, "mark", "a session ended with an error"],
  hang: [1, "mark", "a session stood still and was ended"],
  save: [7, "tick", "a checkpoint was written"],
  evaluate: [5, "tick", "the validation loss was measured"],
};
const eventKind = (kind) => EVENT_KINDS[kind] ?? [4, "mark", kind];
const eventColor = (kind) => lineColor(eventKind(kind)[0]);
const markOf = ({ event }) => eventKind(event.event)[1];

const EVENTS = RUNS.flatMap((run, index) =>
  run.events.filter((event) => event.step !== null).map((event) => ({ run: index, event })),
).sort((a, b) => a.event.step - b.event.step);
const visibleEvents = () =>
  EVENTS.filter(({ run, event }) => !state.hiddenEvents.has(event.event) && !state.hiddenRuns.has(run));
const NEAR = 4; // pixels

const MOST_KINDS = 3; // under one label; of more, the marks and their tooltips speak for themselves

// `only`: in a plot of all runs null, with names above it; on the heat map of one its index, where the colours leave
// only white to be seen.
function drawEvents(context, box, toX, only) {
  const { x0, x1, y0, y1 } = box,
    labelled = only === null;
  const labels = [],
    last = {};
  const events = visibleEvents().filter(({ run }) => labelled || run === only);
  const inside = ({ event }) => toX(event.step) >= x0 - 0.5 && toX(event.step) <= x1 + 0.5;
  const color = ({ run, event }) => (!labelled ? "#fff" : COMPARED ? lineColor(run) : eventColor(event.event));
  events.forEach((entry) => drawRolledBack(context, box, toX, entry, color(entry)));
  const shown = events.filter(inside);
  const crowded = (mark) => shown.filter((entry) => markOf(entry) === mark).length * 10 > x1 - x0;
  const full = { tick: crowded("tick"), mark: crowded("mark"), line: false };
  for (const entry of shown) {
    const mark = markOf(entry),
      x = toX(entry.event.step),
      key = `${entry.run} ${entry.event.event}`;
    if (mark === "tick" && !labelled) continue;
    if (mark !== "line" && x - (last[key] ?? -Infinity) < (mark === "tick" ? 3 : 1)) continue;
    last[key] = x;
    context.fillStyle = context.strokeStyle = color(entry);
    if (mark === "tick") {
      drawTick(context, x, y1, full.tick ? 0.5 : 3);
      continue;
    }
    if (mark === "mark") drawTriangle(context, x, y0, full.mark ? 1.5 : 4);
    context.globalAlpha = full[mark] ? 0.25 : 0.75;
    context.setLineDash([3, 3]);
    line(context, crisp(x - 0.5), y0, crisp(x - 0.5), y1);
    context.setLineDash([]);
    context.globalAlpha = 1;
    if (labelled) addLabel(context, box, labels, { x, color: color(entry), kinds: new Set([entry.event.event]) });
  }
  context.textAlign = "left";
  context.textBaseline = "bottom";
  for (const { color, text, left, kinds } of labels) {
    if (kinds.size > MOST_KINDS) continue;
    context.fillStyle = color;
    context.fillText(text, left, y0 - 2);
  }
}

// The steps that a rollback threw away, shaded from the checkpoint to where it was decided.
function drawRolledBack(context, { x0, x1, y0, y1 }, toX, { event }, color) {
  const back = Number(event.details.to_step);
  if (!["rollback", "stop"].includes(event.event) || !Number.isFinite(back)) return;
  const [from, to] = [back, event.step].map((step) => Math.min(x1, Math.max(x0, toX(step))));
  context.globalAlpha = 0.12;
  context.fillStyle = color;
  context.fillRect(from, y0, to - from, y1 - y0);
  context.globalAlpha = 1;
}

function drawTick(context, x, y, half) {
  context.beginPath();
  context.moveTo(x - Math.min(half, 0.5), y - 6);
  context.lineTo(x + Math.min(half, 0.5), y - 6);
  context.lineTo(x + half, y);
  context.lineTo(x - half, y);
  context.fill();
}

function drawTriangle(context, x, y, half) {
  context.beginPath();
  context.moveTo(x - half, y);
  context.lineTo(x + half, y);
  context.lineTo(x, y + 7);
  context.fill();
}

// Labels that would overlap become one, so that a rare event beside a common one keeps its name.
function addLabel(context, { x0, x1 }, labels, label) {
  label.text = [...label.kinds].join(", ");
  const width = context.measureText(label.text).width;
  label.left = Math.min(Math.max(label.x - width / 2, x0 - 20), x1 - width + 8);
  label.right = label.left + width;
  const last = labels[labels.length - 1];
  if (!last || label.left > last.right + 6) {
    labels.push(label);
    return;
  }
  labels.pop();
  addLabel(context, { x0, x1 }, labels, { ...last, kinds: new Set([...last.kinds, ...label.kinds]) });
}

// Lines of a tooltip about the events that are near the pointer; `distance`: of a step, in pixels; `only` as above.
function eventLines(distance, only) {
  const near = visibleEvents().filter(
    ({ run, event }) => (only === null || run === only) && distance(event.step) < NEAR,
  );
  const text = ({ run, event }) =>
    `${event.event} at ${formatInteger(event.step)}${COMPARED ? " · " + RUNS[run].label : ""}${reason(event)}`;
  const lines = near.slice(0, 4).map((entry) => element("div", { class: "event" }, text(entry)));
  if (near.length > 4)
    lines.push(element("div", { class: "event" }, `and ${plural(near.length - 4, "event")} more`));
  return lines;
}
const reason = (event) => (event.details.reason ? ` · ${event.details.reason}` : "");

// Buttons that show and hide runs and kinds of events; those of the events are their legend, too.
function chips() {
  const chip = (label, mark, set, key, title) => {
    const button = element(
      "button",
      {
        type: "button",
        title,
        "aria-pressed": "true",
        onclick: () => {
          if (!set.delete(key)) set.add(key);
          button.setAttribute("aria-pressed", String(!set.has(key)));
          redrawAll();
        },
      },
      mark,
      label,
    );
    return button;
  };
  const runs = COMPARED
    ? RUNS.map((run, index) => chip(run.label, runSwatch(index), state.hiddenRuns, index, "show or hide this run"))
    : [];
  const kinds = [...new Set(EVENTS.map(({ event }) => event.event))].map((kind) => {
    const [, mark, meaning] = eventKind(kind);
    const glyph = element("i", { class: `glyph ${mark}` });
    const paint = { draw: () => (glyph.style.color = COMPARED ? css("--soft") : eventColor(kind)) };
    drawings.push(paint);
    return chip(kind, glyph, state.hiddenEvents, kind, `${meaning}; click to show or hide`);
  });
  return element(
    "div",
    { class: "chips" },
    ...runs,
    kinds.length ? element("span", { class: "sub", style: runs.length ? "margin-left:10px" : "" }, "Events") : null,
    ...kinds,
  );
}
