"""How a run's last session ended, by its events."""

from __future__ import annotations

import pytest

from pretrain.analysis.recorded_session import how_it_ended


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], ""),
        ([("start", "")], ""),
        ([("start", ""), ("alert", "a spike")], ""),
        ([("start", ""), ("end", "max_steps"), ("resume", "")], ""),
        ([("start", ""), ("signal", ""), ("alert", "late")], "stopped by a signal"),
        ([("start", ""), ("stop", "an alarm"), ("end", "unstable")], "unstable"),
        ([("start", ""), ("crash", "Diverged: step 4")], "crashed: Diverged: step 4"),
        ([("resume", ""), ("hang", "rank 1 stands still")], "hung, and was ended: rank 1 stands still"),
    ],
)
def test_the_last_word(events, words):
    assert how_it_ended([{"event": event, "reason": reason} for event, reason in events]) == words
