"""No layer is ever dropped: moving any single layer's weights changes the evaluation, however the model is cut."""

from __future__ import annotations

import pytest
import targets_engine as targets
from harness import run_group

CHANGES = {"model.encoder_layers": 5, "model.decoder_layers": 4, "model.dropout": 0.0}
LAYOUTS = {
    "one": (1, {}),
    "pp2": (2, {"parallel.pipeline_stages": 2}),
    "pp3_recomputed": (3, {"parallel.pipeline_stages": 3, "train.activation_checkpointing": 2}),
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """layout -> (losses by row on every rank, layers held by every rank)"""
    found = {}
    for name, (processes, changes) in LAYOUTS.items():
        log = str(tmp_path_factory.mktemp("log"))
        found[name] = zip(*run_group(targets.losses_by_layer, processes, {**CHANGES, **changes}, log), strict=True)
        found[name] = tuple(map(list, found[name]))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_is_held_once(losses, layout):
    spec = targets.model_spec(targets.experiment({**CHANGES, **LAYOUTS[layout][1]}))
    held = losses[layout][1]
    assert [name for rank in held for name in rank] == [layer.name for layer in spec.layers]
    assert len(held) == LAYOUTS[layout][0]
    assert all(held)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_counts(losses, layout):
    for rank in losses[layout][0]:
        base = rank[None]
        rows = [row for row in rank if row not in (None, "head")]
        assert len([row for row in rows if ".layers." in row]) == 9
        assert rank["head"] is None, "the head owns nothing: it reads the shared matrix"
        # Two evaluations of the same weights are equal to the bit; the least change seen is 1e-4 of the loss.
        dropped = [row for row in rows if rank[row] is None or abs(rank[row] - base) < 1e-5 * base]
        assert dropped == []


@pytest.mark.parametrize("layout", ["pp2", "pp3_recomputed"])
def test_stages_count_as_one_process_does(losses, layout):
    one = losses["one"][0][0]
    for rank in losses[layout][0]:
        assert {row for row in rank if rank[row] is None} == {"head"}
        for row, loss in rank.items():
            assert loss == (None if one[row] is None else pytest.approx(one[row], rel=1e-6)), row
