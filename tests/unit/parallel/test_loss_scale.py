"""fp16's loss scale over a save and a resume, on DeepSpeed's own scaler; fp16 itself needs a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler

from pretrain.parallel.loss_scale import load_scaler_state, scaler_state
from pretrain.parallel.zero_engine import ZeroEngine

# (overflows before the save, after it): hysteresis in the middle of its count; a scale that grew in between; neither.
HISTORIES = [("10", "1110000100"), ("1100000000", "0000001"), ("", "1100"), ("110010001", "0000000000")]


def scaler():
    return loss_scaler.CreateLossScaler(
        torch.half,
        static_loss_scale=0,
        dynamic_scaling=True,
        dynamic_loss_args={
            "init_scale": 2.0**16,
            "scale_window": 3,
            "min_scale": 1.0,
            "delayed_shift": 2,
            "consecutive_hysteresis": False,
        },
    )


def scales(own, history):
    """The scale after each step."""
    found = []
    for overflow in history:
        own.update_scale(overflow == "1")
        found.append(own.loss_scale)
    return found


@pytest.fixture(autouse=True)
def first_rank(monkeypatch):
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 0)


@pytest.mark.parametrize(("before", "after"), HISTORIES)
def test_the_scale_goes_on_as_if_nothing_had_happened(before, after):
    whole, first, second = scaler(), scaler(), scaler()
    expected = scales(whole, before + after)[len(before) :]
    scales(first, before)
    load_scaler_state(second, json.loads(json.dumps(scaler_state(first))))
    assert scales(second, after) == expected
    assert vars(second) == vars(whole), "all that a scaler holds"


def test_what_is_not_saved_is_configuration():
    own = scaler()
    fresh = dict(vars(own))
    scales(own, "1100001110000")
    changed = {name for name, value in vars(own).items() if value != fresh[name]}
    assert changed <= set(scaler_state(own))


def test_a_fixed_scale_has_no_state_and_takes_none():
    fixed = loss_scaler.CreateLossScaler(torch.bfloat16, 128.0, False, None)
    assert scaler_state(fixed) == {}
    load_scaler_state(fixed, scaler_state(scaler()))
    assert fixed.loss_scale == 1.0
    dynamic = scaler()
    load_scaler_state(dynamic, {})  # saved in fp32 or bf16: the first scale of the configuration
    assert dynamic.loss_scale == 2.0**16


def test_what_is_propagated_backwards_has_the_scale_and_the_number_of_ranks():
    """Of a fixed scale, of none (DeepSpeed's BF16 optimizer has no scaler), and of one that has changed."""
    own = scaler()
    scales(own, "11")
    fixed = loss_scaler.CreateLossScaler(torch.half, 128.0, False, None)
    for current, expected in ((own, 3 * 2.0**15), (fixed, 3 * 128.0), (None, 3.0)):
        engine = SimpleNamespace(data_parallel_size=3, _loss_scaler=current)
        assert ZeroEngine.backward_scale.fget(engine) == expected
