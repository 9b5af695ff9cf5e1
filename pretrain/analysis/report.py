"""The report: one HTML file about one run, or several runs compared, that opens without a network."""

from __future__ import annotations

import html
import os
import re
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from pretrain import __version__
from pretrain.analysis.compact import script_json
from pretrain.analysis.recorded_run import RecordedRun, read_run
from pretrain.analysis.report_data import report_data
from pretrain.errors import UserError

STYLES = ("report.css", "report_plots.css")
SCRIPTS = (
    "report_base.js",
    "report_events.js",
    "report_plot.js",
    "report_curves.js",
    "report_matrix.js",
    "report_heatmap.js",
    "report_depth.js",
    "report_verdicts.js",
    "report_sections.js",
    "report_page.js",
)


def write_report(runs: list[Path], out: Path) -> None:
    """Write one self-contained HTML file about `runs` to `out`, whole or not at all.

    Raises:
        UserError: no run given, a folder is not a run, or `out` cannot be written.
    """
    folders = list({path.resolve(): path for path in runs}.values())
    if not folders:
        raise UserError("no run given; name at least one run's folder")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name the HTML file to write, such as {out / 'report.html'}")
    page = render([read_run(path) for path in folders])
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place with -o") from None


def render(runs: list[RecordedRun]) -> str:
    """The page about `runs` as text."""
    data = report_data(runs)
    data["version"] = __version__
    data["created"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = {
        "title": html.escape(" / ".join(run["label"] for run in data["runs"])),
        "style": "\n".join(_template(name) for name in STYLES),
        "script": "\n".join(_template(name) for name in SCRIPTS),
        "data": script_json(data),
    }
    # one pass, so that braces inside the data are never taken for a slot
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _template("report.html"))


def _template(name: str) -> str:
    return resources.files("pretrain.analysis").joinpath(name).read_text(encoding="utf-8")
