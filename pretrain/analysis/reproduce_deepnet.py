"""The DeepNet figure (arXiv 2203.00555): how the model update grows with depth, DeepNorm beside Post-LN.

Tiny encoder-decoders of the recipe deepnet_depth from 6+6 to 100+100 layers, each design with and without warm-up.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.analysis.recorded_run import RecordedRun, read_run
from pretrain.analysis.reproduce import Run, train_all
from pretrain.errors import UserError

RECIPE = "deepnet_depth"
DEPTHS = (6, 12, 24, 50, 100)
STEPS = 120
WARMUP = 1000
"""Steps of the warm-up, of which a study runs the first few: the rate is still small then, as in the paper."""
SHOWN_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Steps whose figures the table has, as far as the runs go."""


@dataclass(frozen=True)
class Setting:
    """A design under a schedule."""

    block: str
    warmup: bool

    @property
    def name(self) -> str:
        return f"{self.block}_{'warmup' if self.warmup else 'no_warmup'}"

    @property
    def title(self) -> str:
        design = {"deepnorm": "DeepNorm", "post_ln": "Post-LN"}[self.block]
        return f"{design}, {'warm-up' if self.warmup else 'no warm-up'}"


SETTINGS = tuple(Setting(block, warmup) for warmup in (True, False) for block in ("deepnorm", "post_ln"))


@dataclass(frozen=True)
class Curve:
    """One run over its steps 1 to n; each [n], NaN where a figure is missing."""

    update: np.ndarray
    """||F(x, theta_t) - F(x, theta_0)||"""
    step_update: np.ndarray
    """The same against the step before."""
    bound: np.ndarray
    """The heuristic bound on `update`."""
    loss: np.ndarray
    source_use: float = math.nan
    """At the last of these steps that was evaluated: nats a token that exchanged sources cost; NaN without any."""

    @property
    def steps(self) -> np.ndarray:
        return np.arange(1, len(self.loss) + 1)

    def at(self, step: int) -> float:
        """The update after `step` steps; NaN beyond the run's end."""
        return float(self.update[step - 1]) if step <= len(self.update) else math.nan


Curves = Mapping[Setting, Mapping[int, Curve]]
"""Setting -> layers of each stack -> curve."""


@dataclass(frozen=True)
class Study:
    """What was asked for: the depths (layers of each stack), the steps, and where it all goes."""

    folder: Path
    depths: Sequence[int] = DEPTHS
    steps: int = STEPS
    overrides: Sequence[str] = ()

    def run_of(self, setting: Setting, depth: int) -> Run:
        keys = (
            f"model.block.kind={setting.block}",
            f"model.encoder_layers={depth}",
            f"model.decoder_layers={depth}",
            f"schedule.warmup_steps={WARMUP if setting.warmup else 0}",
            f"train.max_steps={max(WARMUP, self.steps)}",
            f"train.stop_at_step={self.steps}",
            f"evaluation.interval={self.steps}",
            f"name={setting.name}_{depth}",
        )
        folder = self.folder / "runs" / f"{setting.name}_{depth}"
        return Run(folder, f"{setting.title}, {depth}+{depth}", RECIPE, (*keys, *self.overrides))

    def runs(self) -> list[Run]:
        """The deepest first, so that the processes end together."""
        return [self.run_of(setting, depth) for depth in sorted(self.depths, reverse=True) for setting in SETTINGS]

    def train(self, at_a_time: int, say: Callable[[str], None]) -> list[Run]:
        """Train all that are not finished; returns those that failed.

        Raises:
            UserError: before anything is trained.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made ({error.strerror}); choose another place with -o") from None
        return train_all(self.runs(), at_a_time, say)

    def curves(self) -> Curves:
        """What the runs have logged up to `steps`; runs that have logged nothing are left out."""
        found: dict[Setting, dict[int, Curve]] = {setting: {} for setting in SETTINGS}
        for setting in SETTINGS:
            for depth in sorted(self.depths):
                folder = self.run_of(setting, depth).folder
                if folder.is_dir() and (curve := curve_of(read_run(folder), self.steps)) is not None:
                    found[setting][depth] = curve
        return found


def curve_of(run: RecordedRun, steps: int) -> Curve | None:
    """The first `steps` steps of a run; None if there is none."""
    columns = {signal.signal: (signal.steps, signal.values[:, 0]) for signal in run.layers if signal.group == "model"}
    if "loss" not in run.metrics:
        return None
    columns["loss"] = run.metrics["loss"].steps, run.metrics["loss"].values
    last = min(steps, int(columns["loss"][0][-1]))

    def column(name: str) -> np.ndarray:
        values = np.full(last, math.nan)
        logged_at, logged = columns.get(name, (np.empty(0, dtype=np.int64), np.empty(0)))
        inside = (logged_at >= 1) & (logged_at <= last)
        values[logged_at[inside] - 1] = logged[inside]
        return values

    evaluated = run.metrics.get("source_use")
    uses = [math.nan] if evaluated is None else [math.nan, *evaluated.values[evaluated.steps <= steps].tolist()]
    return Curve(
        column("model_update"), column("model_update_step"), column("model_update_bound"), column("loss"), uses[-1]
    )


def every_curve(curves: Curves) -> Iterator[tuple[Setting, int, Curve]]:
    for setting, by_depth in curves.items():
        for depth, curve in by_depth.items():
            yield setting, depth, curve


def shown_steps(curves: Curves) -> list[int]:
    """Columns of the table."""
    longest = max((len(curve.loss) for _, _, curve in every_curve(curves)), default=0)
    return sorted({step for step in SHOWN_STEPS if step <= longest} | ({longest} if longest else set()))


def write_csv(path: Path, curves: Curves) -> None:
    """Every figure of every step."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["block", "warmup", "layers", "step", "model_update", "model_update_step", "heuristic_bound", "loss"]
        )
        for setting, depth, curve in every_curve(curves):
            columns = zip(curve.steps, curve.update, curve.step_update, curve.bound, curve.loss, strict=True)
            for step, *figures in columns:
                writer.writerow(
                    [setting.block, setting.warmup, f"{depth}+{depth}", step, *map("{:.6g}".format, figures)]
                )


def table(curves: Curves) -> tuple[list[str], list[list[str]]]:
    """(head, rows): the update after some steps, the loss over the last tenth of the steps, and the source use."""
    steps = shown_steps(curves)
    head = ["design", "layers", *[f"after {step}" for step in steps], "loss at the end", "source use"]
    rows = []
    for setting, depth, curve in every_curve(curves):
        figures = [f"{curve.at(step):.3g}" for step in steps]
        rows.append([setting.title, f"{depth}+{depth}", *figures, f"{late_loss(curve):.3f}", f"{curve.source_use:.2g}"])
    return head, rows


def late_loss(curve: Curve) -> float:
    """Mean training loss of the last tenth of the steps."""
    return float(curve.loss[-max(1, len(curve.loss) // 10) :].mean())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
