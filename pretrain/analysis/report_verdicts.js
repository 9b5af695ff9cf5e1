// The verdicts: what each signal says of the run, in words, the worst first.

const LEVELS = ["ok", "watch", "alarm"];
const levelOf = (verdict) => Math.max(0, LEVELS.indexOf(verdict.level));
const VERDICTS = RUNS.flatMap((run, index) => run.verdicts.map((verdict) => ({ ...verdict, run: index }))).sort(
  (a, b) => levelOf(b) - levelOf(a),
);
const worstLevel = (figure) => Math.max(0, ...VERDICTS.filter((verdict) => verdict.figure === figure).map(levelOf));

const dot = (level) => (level ? element("i", { class: `dot ${LEVELS[level]}`, title: LEVELS[level] }) : null);
const verdictDot = (figure) => dot(worstLevel(figure));
const sectionOf = (figure) => DATA.signals[figure]?.section ?? "steps";
function sectionDot(id) {
  const own = VERDICTS.filter((verdict) => `section-${sectionOf(verdict.figure)}` === id);
  return dot(Math.max(0, ...own.map(levelOf)));
}

// Several signals may be read from one figure.
const SIGNAL_NAMES = {
  not_finite: "Finite figures",
  gradient_norm_jump: "Gradient against its median",
  gradient_norm_zero: "Gradient at all",
  model_update_stuck: "Model update in the first steps",
  source_use: "Source use",
  spike_score: "Spike score",
  skipped_steps: "Steps thrown away",
  nonfinite_steps: "Steps not finite",
};
const verdictName = ({ figure, signal }) => SIGNAL_NAMES[signal] ?? DATA.signals[figure]?.title ?? words(signal);

function verdictRow(verdict) {
  const show = () => {
    const matrix = MATRICES.find(
      (m) => m.run === verdict.run && m.signal === verdict.figure && m.group === verdict.group,
    );
    if (matrix) state.part = matrix.part;
    if (MATRICES.length) choosePlace(verdict.step ?? state.step, verdict.layer);
    showSignal(verdict.figure);
    redrawAll();
  };
  return element(
    "div",
    { class: "verdict" },
    element("span", { class: `badge ${verdict.level}` }, verdict.level),
    element(
      "div",
      {},
      element("div", {}, verdict.sentence),
      element(
        "div",
        { class: "sub place" },
        COMPARED ? element("b", {}, runSwatch(verdict.run), RUNS[verdict.run].label, " · ") : null,
        verdictName(verdict) + (verdict.step === null ? "" : `, step ${formatInteger(verdict.step)}`),
      ),
    ),
    DATA.signals[verdict.figure] ? element("button", { type: "button", onclick: show }, "show") : null,
  );
}

const SHOWN_AT_ONCE = 4;

function verdictsSection() {
  if (!VERDICTS.length) return [];
  const bad = VERDICTS.filter((verdict) => levelOf(verdict) > 0),
    good = VERDICTS.filter((verdict) => levelOf(verdict) === 0);
  const rows = bad.map(verdictRow);
  const more = rows.slice(SHOWN_AT_ONCE);
  const names = [...new Set(good.map(verdictName))];
  const fine = element(
    "div",
    { class: "verdict" },
    element("span", { class: "badge ok" }, "ok"),
    element("div", { class: "sub" }, bad.length ? names.join(" · ") : `All signals: ${names.join(" · ")}`),
  );
  return [
    element(
      "div",
      { class: "card verdicts" },
      ...rows.slice(0, SHOWN_AT_ONCE),
      more.length ? element("details", {}, element("summary", {}, `${more.length} more`), ...more) : null,
      names.length ? fine : null,
    ),
  ];
}
