// The page from top to bottom.

function heading() {
  const title = COMPARED ? `${RUNS.length} runs compared` : RUNS[0].label;
  const lines = COMPARED
    ? [element("div", { class: "sub" }, RUNS.map((run) => run.label).join(" · "))]
    : [element("div", { class: "sub" }, RUNS[0].model), element("div", { class: "path" }, RUNS[0].path)];
  return element(
    "header",
    {},
    element("div", {}, element("h1", {}, title), ...lines),
    element(
      "div",
      { class: "when" },
      COMPARED ? null : element("div", { class: "sub" }, RUNS[0].status),
      element("div", { class: "path" }, `written ${DATA.created}`),
    ),
  );
}

function tile(label, [figure, unit], ...more) {
  return element(
    "div",
    { class: "card tile" },
    element("div", { class: "label" }, label),
    element("div", { class: "figure" }, figure, unit ? element("small", {}, unit) : null),
    ...more
      .filter(Boolean)
      .map((line) => (typeof line === "string" ? element("div", { class: "more" }, line) : line)),
  );
}

function tiles({ figures: f }) {
  const found = [];
  if (f.loss !== null) {
    found.push(
      tile(
        "Final loss",
        [formatNumber(f.loss), "nats"],
        f.loss_mean !== null && f.loss_mean_over > 1
          ? `mean of the last ${f.loss_mean_over}: ${formatNumber(f.loss_mean)}`
          : null,
      ),
    );
  }
  if (f.validation_loss !== null) {
    const entropy = f.unigram_entropy;
    found.push(
      tile(
        "Validation loss",
        [formatNumber(f.validation_loss), "nats"],
        entropy === null
          ? null
          : element(
              "div",
              { class: "bar", title: "share of the unigram entropy" },
              element("i", { style: `width:${Math.min(100, (100 * f.validation_loss) / entropy)}%` }),
            ),
        entropy === null
          ? null
          : `unigram entropy ${formatNumber(entropy)} (${signed(f.validation_loss - entropy)})`,
      ),
    );
  }
  if (f.source_use !== null)
    found.push(tile("Source use", [formatNumber(f.source_use, 3), "nats"], "what exchanged sources cost"));
  if (f.parameters !== null)
    found.push(tile("Parameters", formatCompact(f.parameters), formatInteger(f.parameters)));
  if (f.tokens_per_second !== null) {
    const [figure, unit] = formatCompact(f.tokens_per_second);
    found.push(
      tile(
        "Throughput",
        [figure, `${unit} tokens/s`.trim()],
        f.mfu === null ? null : `MFU ${formatNumber(100 * f.mfu, 3)} %`,
      ),
    );
  }
  if (f.seconds !== null)
    found.push(
      tile(
        "Time",
        formatSeconds(f.seconds),
        f.step_seconds === null ? null : `${formatNumber(f.step_seconds, 3)} s a step`,
      ),
    );
  if (f.tokens !== null) found.push(tile("Tokens seen", formatCompact(f.tokens), plural(f.step, "step")));
  const exported = f.export_max_logit_difference_saved ?? f.export_max_logit_difference_fp64;
  if (exported !== null) {
    found.push(
      tile(
        "Export, logits off by",
        [formatNumber(exported, 3), ""],
        f.export_max_logit_difference_fp64 === null
          ? null
          : `in memory ${formatNumber(f.export_max_logit_difference_fp64, 3)}`,
      ),
    );
  }
  return element("div", { class: "tiles" }, ...found);
}
const signed = (value) => (value < 0 ? "−" : "+") + formatNumber(Math.abs(value), 3);

const FIGURES = [
  ["Steps", (f) => formatInteger(f.step)],
  ["Final loss", (f) => formatNumber(f.loss)],
  ["Validation loss", (f) => formatNumber(f.validation_loss)],
  ["Source use", (f) => (f.source_use === null ? "–" : formatNumber(f.source_use, 3))],
  ["Unigram entropy", (f) => formatNumber(f.unigram_entropy)],
  ["Parameters", (f) => (f.parameters === null ? "–" : formatCompact(f.parameters).join(" "))],
  ["Tokens/s", (f) => (f.tokens_per_second === null ? "–" : formatCompact(f.tokens_per_second).join(" "))],
  ["Time", (f) => (f.seconds === null ? "–" : formatSeconds(f.seconds).join(" "))],
];

function comparison() {
  const head = element(
    "tr",
    {},
    element("th", {}, "Run"),
    ...FIGURES.map(([name]) => element("th", { class: "number" }, name)),
  );
  const rows = RUNS.map((run, index) =>
    element(
      "tr",
      {},
      element(
        "td",
        { class: "run" },
        element("b", {}, runSwatch(index), run.label),
        element("div", { class: "sub" }, run.model),
        element("div", { class: "path" }, `${run.path} · ${run.status}`),
      ),
      ...FIGURES.map(([, text]) => element("td", { class: "number" }, text(run.figures))),
    ),
  );
  return element(
    "div",
    { class: "card wide" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

function notes() {
  const lines = RUNS.flatMap((run) => run.notes.map((note) => (COMPARED ? `${run.label}: ${note}` : note)));
  return lines.length ? [element("div", { class: "notes" }, ...lines.map((text) => element("div", {}, text)))] : [];
}

// ---- tables

function eventsSection() {
  const events = RUNS.flatMap((run, index) => run.events.map((event) => ({ run: index, event })));
  if (!events.length) return [];
  events.sort((a, b) => a.event.time.localeCompare(b.event.time));
  const heads = ["Time (UTC)", ...(COMPARED ? ["Run"] : []), "Step", "Event", "Details"];
  const rows = events.map(({ run, event }) =>
    element(
      "tr",
      {},
      element("td", { class: "nowrap" }, event.time.slice(0, 19).replace("T", " ")),
      COMPARED ? element("td", {}, runSwatch(run), RUNS[run].label) : null,
      element("td", { class: "number" }, event.step === null ? "–" : formatInteger(event.step)),
      element(
        "td",
        { class: "nowrap" },
        legendItem(() => eventColor(event.event), "", true),
        event.event,
      ),
      element(
        "td",
        {},
        Object.entries(event.details)
          .map(([key, text]) => (key === "reason" ? text : `${key} ${text}`))
          .join(" · "),
      ),
    ),
  );
  return [
    element("div", { class: "row section-head" }, element("h2", {}, "Events")),
    element(
      "div",
      { class: "card" },
      element(
        "div",
        { class: "scroll" },
        element(
          "table",
          {},
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              ...heads.map((text) => element("th", { class: text === "Step" ? "number" : null }, text)),
            ),
          ),
          element("tbody", {}, ...rows),
        ),
      ),
    ),
  ];
}

function configurationSection() {
  const found = [];
  if (COMPARED) {
    const rows = DATA.differences.map(({ key, values }) =>
      element(
        "tr",
        {},
        element("td", { class: "key" }, key),
        ...values.map((text) => element("td", { class: "value" }, text ?? "–")),
      ),
    );
    found.push(
      element("div", { class: "row section-head" }, element("h2", {}, "Configuration differences")),
      element(
        "div",
        { class: "card wide" },
        rows.length
          ? element(
              "table",
              {},
              element(
                "thead",
                {},
                element(
                  "tr",
                  {},
                  element("th", {}, "Key"),
                  ...RUNS.map((run, i) => element("th", {}, runSwatch(i), run.label)),
                ),
              ),
              element("tbody", {}, ...rows),
            )
          : element("div", { class: "sub" }, "None: the runs have the same configuration."),
      ),
    );
  }
  const configs = RUNS.filter((run) => Object.keys(run.config).length);
  if (configs.length && !COMPARED)
    found.push(element("div", { class: "row section-head" }, element("h2", {}, "Configuration")));
  for (const run of configs) {
    found.push(
      element(
        "details",
        { class: "card" },
        element("summary", {}, COMPARED ? `Configuration of ${run.label}` : "All keys as resolved"),
        element(
          "div",
          { class: "columns" },
          ...Object.entries(run.config).map(([key, text]) =>
            element("div", {}, element("span", {}, key), element("span", {}, text)),
          ),
        ),
      ),
    );
  }
  return found;
}

// A section needs an id and an h2 to be in the bar.
const section = (id, nodes) => (nodes.length ? [element("section", { id: `section-${id}` }, ...nodes)] : []);
const sections = [
  ...section("steps", curvesSection()),
  ...depthSections(),
  ...section("speed", speedSection()),
  ...section("events", eventsSection()),
  ...section("configuration", configurationSection()),
];
page.append(
  heading(),
  COMPARED ? comparison() : tiles(RUNS[0]),
  ...notes(),
  ...verdictsSection(),
  bar(sections),
  ...sections,
  element("footer", {}, `kilolayer ${DATA.version}`),
);
SECTIONS.forEach((entry) => entry.begin());
drawings.forEach((drawing) => drawing.draw());
document.documentElement.dataset.ready = "true";
