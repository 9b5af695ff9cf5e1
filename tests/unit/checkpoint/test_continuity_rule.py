"""Only a figure for the very same samples may stop a run after its resume."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pretrain.checkpoint.continuity import Continuity
from pretrain.errors import ResumeMismatch

STEP, BATCH = 5, 8
SAMPLES = [[32, 40]]


class Loader:
    """Stands behind four batches, and leaves these samples out."""

    def __init__(self, skipped=()):
        self.skipped = list(skipped)

    def ranges_after(self, data):
        first = data["samples_consumed"] + (BATCH if data["skip_ranges"] else 0)
        return [(first, first + BATCH)]

    def state_dict(self):
        return {"samples_consumed": (STEP - 1) * BATCH, "skip_ranges": self.skipped}

    def next(self):
        return []

    def load_state_dict(self, state): ...


def first_step(tmp_path, loss, rows=(), recorded=None, evaluation=0.0, loader=None):
    """A resume behind step 4, then step 5 with this loss."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = []
    trainer = SimpleNamespace(
        experiment=SimpleNamespace(
            checkpoint=SimpleNamespace(verify_resume=True), train=SimpleNamespace(precision="fp32")
        ),
        progress=SimpleNamespace(step=STEP - 1, loss=0.287345),
        loader=Loader(),
        folder=SimpleNamespace(path=tmp_path, event=lambda *args, **fields: events.append(fields)),
        engine=SimpleNamespace(evaluate=lambda batches: (evaluation, 1)),
    )
    state = {"data": {"samples_consumed": (STEP - 1) * BATCH, "skip_ranges": []}}
    checkpoint = SimpleNamespace(manifest=SimpleNamespace(layout={}), training=lambda: state)
    callback = Continuity()
    callback.load_state_dict(recorded or {})
    callback.on_resume(trainer, checkpoint)
    trainer.loader = loader or trainer.loader  # a callback after this one leaves samples out
    callback.on_start(trainer)
    report = SimpleNamespace(step=STEP, step_seconds=0.1, result=SimpleNamespace(loss=loss))
    callback.on_step_end(trainer, report)
    return events


def test_a_loss_far_above_the_step_before_is_none_of_its_business(tmp_path):
    """Repeating text, then tables of numbers."""
    assert first_step(tmp_path, 2.60016) == []


def test_the_logged_loss_of_the_same_samples_counts(tmp_path):
    row = {"step": STEP, "loss": 2.5, "sample_ranges": SAMPLES}
    first_step(tmp_path, 2.5, [row])
    with pytest.raises(ResumeMismatch, match=r"step 5, the first after the resume: loss 2\.7 instead of 2\.5;"):
        first_step(tmp_path, 2.7, [row])


@pytest.mark.parametrize("row", [{"sample_ranges": [[40, 48]]}, {}, {"sample_ranges": "nonsense"}])
def test_a_loss_of_other_samples_or_of_no_stated_ones_does_not(tmp_path, row):
    """Logged before a rollback, with other `data.skip_ranges`, or by an earlier version."""
    assert first_step(tmp_path, 2.7, [{"step": STEP, "loss": 2.5, **row}]) == []


def test_a_batch_that_is_skipped_since_then_is_not_awaited(tmp_path):
    """A rollback's event, read by a callback that comes later; or the first try of the step was thrown away."""
    row = {"step": STEP, "loss": 5.14664, "sample_ranges": SAMPLES}
    assert first_step(tmp_path, 5.19725, [row], loader=Loader(SAMPLES)) == []


def test_the_recorded_evaluation_counts_for_the_batch_behind_the_checkpoint(tmp_path):
    recorded = {"step": STEP, "loss": 2.5}
    first_step(tmp_path, 9.0, recorded=recorded, evaluation=2.5)
    with pytest.raises(ResumeMismatch, match=r"evaluation loss 2\.7 instead of 2\.5"):
        first_step(tmp_path, 9.0, recorded=recorded, evaluation=2.7)
    assert first_step(tmp_path, 9.0, recorded=recorded, evaluation=2.7, loader=Loader([[32, 40]])) == []
