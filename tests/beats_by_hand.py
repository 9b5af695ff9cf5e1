"""A heartbeat, of which tests change what matters to them."""

from __future__ import annotations

from pretrain.resilience.heartbeat import Beat

BEAT = Beat(
    session="s",
    rank=0,
    host="h",
    pid=100,
    number=1,
    step=7,
    phase="step",
    layer="decoder.layers.2",
    direction="forward",
    micro_batch=1,
    marks=50,
    still=61.0,
    overdue=True,
    waits_in="all_reduce",
)
