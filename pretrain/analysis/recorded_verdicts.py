"""The newest verdicts of a run, as verdicts.json has them, for whoever shows them."""

from __future__ import annotations

import math
from typing import Any

from pretrain.analysis.recorded_run import number

LEVELS = ("ok", "watch", "alarm")


def newest_verdicts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each signal's verdict, the worst first; keys signal, figure, group (may be ""), layer, step, level, sentence.

    Args:
        record: what verdicts.json holds; what in it is no verdict is left out.
    """
    entries = record.get("verdicts")
    step = number(record.get("step"))
    found = [
        {
            "signal": str(entry.get("signal", ""))[:60],
            "figure": str(entry.get("figure", ""))[:60],
            "group": str(entry.get("group", ""))[:60],
            "layer": int(layer) if math.isfinite(layer := number(entry.get("layer"))) else 0,
            "step": int(step) if math.isfinite(step) else None,
            "level": entry["level"],
            "sentence": str(entry.get("sentence", ""))[:600],
        }
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and entry.get("level") in LEVELS
    ]
    return sorted(found, key=lambda verdict: -LEVELS.index(verdict["level"]))
