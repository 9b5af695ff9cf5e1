"""What the curves say of the paper's two claims; told as it is, also where a claim is not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.analysis.reproduce_deepnet import Curve, Curves, Setting, late_loss

COMPARED_AFTER = 1
"""Steps after which depths are compared. The theorem is about one update; and two outputs that have nothing in common
any more are sqrt(2 d) = 11.3 apart at width 64, which hides further growth within a few steps."""
NEARLY_CONSTANT = 2.0
"""Factor by which the deepest model's update may differ from the shallowest one's and still count as constant."""
GROWS = 2.0
"""Least such factor that counts as growth, and by which Post-LN's must also exceed DeepNorm's."""
JUMP_WITHIN = 5
"""Steps within which a jump happens."""
JUMP_SHARE = 0.5
"""Share of the run's largest update that is reached by a jump."""
FLAT_SHARE = 0.2
"""Most by which the update may vary over the second half of the steps, as a share of its mean there, and be flat."""
STUCK_SHARE = 0.05
"""Most of the whole fall of the loss that may come in the second half of the steps if it stands still."""
STUCK_ABOVE = 0.1
"""Nats by which it then stands above DeepNorm's at least; both see the same batches."""

SEEN, PARTLY, NOT_SEEN, UNDECIDED = "seen", "partly seen", "not seen here", "cannot be told"


@dataclass(frozen=True)
class Verdict:
    """One claim, what became of it (one of the four above), and why."""

    claim: str
    result: str
    words: str


DEPTH_CLAIM = "DeepNorm's model update is nearly constant in depth, while Post-LN's grows."
STUCK_CLAIM = "Post-LN without warm-up jumps within its first steps and then goes flat."


def verdicts(curves: Curves) -> list[Verdict]:
    """On both claims."""
    return [depth_verdict(curves), stuck_verdict(curves)]


def depth_verdict(curves: Curves) -> Verdict:
    """Under the schedule with warm-up, in which both designs are used."""
    designs = [_updates(curves[Setting(block, True)]) for block in ("deepnorm", "post_ln")]
    depths = sorted(designs[0].keys() & designs[1].keys())
    if len(depths) < 2:
        return Verdict(DEPTH_CLAIM, UNDECIDED, "It takes two depths of both designs with warm-up.")
    deepnorm, post_ln = ((updates[depths[0]], updates[depths[-1]]) for updates in designs)
    ours, theirs = deepnorm[1] / deepnorm[0], post_ln[1] / post_ln[0]
    constant = 1 / NEARLY_CONSTANT <= ours <= NEARLY_CONSTANT
    grows = theirs >= GROWS and theirs >= GROWS * ours
    words = (
        f"From {depths[0]}+{depths[0]} to {depths[-1]}+{depths[-1]} layers the update after {COMPARED_AFTER} step with "
        f"warm-up goes from {deepnorm[0]:.3g} to {deepnorm[-1]:.3g} with DeepNorm, {ours:.3g} times as much "
        f"({'nearly constant' if constant else 'not nearly constant'}: at most {NEARLY_CONSTANT:g} times), and from "
        f"{post_ln[0]:.3g} to {post_ln[-1]:.3g} with Post-LN, {theirs:.3g} times as much "
        f"({'it grows' if grows else 'no clear growth'}: at least {GROWS:g} times, and {GROWS:g} times as much as "
        "DeepNorm's)."
    )
    return Verdict(DEPTH_CLAIM, _result([constant, grows]), words)


def _updates(by_depth: Mapping[int, Curve]) -> dict[int, float]:
    """Depth -> the first update, of the models that have one."""
    found = {depth: curve.at(COMPARED_AFTER) for depth, curve in by_depth.items()}
    return {depth: value for depth, value in found.items() if 0 < value < math.inf}


def stuck_verdict(curves: Curves) -> Verdict:
    """On the deepest model that both designs have trained without warm-up."""
    ours, theirs = curves[Setting("deepnorm", False)], curves[Setting("post_ln", False)]
    shared = sorted(ours.keys() & theirs.keys())
    if not shared or len(theirs[shared[-1]].loss) < 2 * JUMP_WITHIN:
        return Verdict(STUCK_CLAIM, UNDECIDED, f"It takes {2 * JUMP_WITHIN} steps of both designs without warm-up.")
    depth = shared[-1]
    deepnorm, post_ln = ours[depth], theirs[depth]
    if not all(np.isfinite(curve.update).all() and np.isfinite(curve.loss).all() for curve in (deepnorm, post_ln)):
        return Verdict(STUCK_CLAIM, UNDECIDED, f"At {depth}+{depth} layers an update or a loss is not finite.")
    jump = float(np.nanmax(post_ln.update[:JUMP_WITHIN]) / np.nanmax(post_ln.update))
    late = post_ln.update[len(post_ln.update) // 2 :]
    varies = float((np.nanmax(late) - np.nanmin(late)) / np.nanmean(late))
    late_share, above = late_fall(post_ln), late_loss(post_ln) - late_loss(deepnorm)
    jumps, flat = jump >= JUMP_SHARE, varies <= FLAT_SHARE
    stuck = late_share <= STUCK_SHARE and above >= STUCK_ABOVE
    words = (
        f"At {depth}+{depth} layers the update reaches {jump:.0%} of its largest value within {JUMP_WITHIN} steps "
        f"({'a jump' if jumps else 'no jump'}: at least {JUMP_SHARE:.0%}). Over the second half of the steps it varies "
        f"by {varies:.0%} of its mean ({'flat' if flat else 'not flat'}: at most {FLAT_SHARE:.0%}), {late_share:.0%} "
        f"of the fall of the loss come in that half, and it ends {above:.2f} nats above DeepNorm's "
        f"({'stuck' if stuck else 'not stuck'}: at most {STUCK_SHARE:.0%}, and at least {STUCK_ABOVE:g} nats above)."
    )
    return Verdict(STUCK_CLAIM, _result([jumps, flat, stuck]), words)


def _result(parts: Sequence[bool]) -> str:
    return SEEN if all(parts) else PARTLY if any(parts) else NOT_SEEN


def late_fall(curve: Curve) -> float:
    """Share of the loss's fall that comes in the second half: from the mean of its first third to that of its last."""
    half = curve.loss[len(curve.loss) // 2 :]
    third = max(1, len(half) // 3)
    end = half[-third:].mean()
    whole = float(curve.loss[0] - end)
    return float(half[:third].mean() - end) / whole if whole > 0 else 0.0
