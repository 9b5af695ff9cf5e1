"""How long a rank may stand still."""

import math

from pretrain.resilience.limits import Limits


def limits() -> Limits:
    return Limits(timeout=60, first_step=600, save=300)


def test_phases_that_take_long_have_an_allowance():
    assert [limits().limit(phase) for phase in ("start", "first step", "checkpoint")] == [600, 600, 300]
    assert [limits().limit(phase) for phase in ("step", "data", "evaluation", "callbacks", "agreement")] == [60] * 5


def test_data_may_take_as_long_as_it_likes():
    own = limits()
    assert own.limit("preparing data") == math.inf
    own.saw("preparing data", 7200)
    assert own.limit("building the engine") == 600


def test_silence_at_the_start_may_be_slowness():
    assert [limits().silence(phase) for phase in ("imports", "process group", "step")] == [300, 300, 60]


def test_an_allowance_below_the_timeout_is_none():
    assert Limits(60, 0, 0).limit("checkpoint") == 60


def test_the_limit_grows_to_three_times_the_longest_gap():
    own = limits()
    own.saw("step", 19)
    assert own.limit("step") == 60
    own.saw("step", 50)
    own.saw("step", 30)
    assert own.limit("step") == 150
    assert own.limit("evaluation") == 150
    assert own.limit("first step") == 600
    own.saw("data", 400)
    assert own.limit("first step") == 1200


def test_gaps_of_the_first_step_count_for_later_ones():
    own = limits()
    own.saw("first step", 100)
    assert own.limit("step") == 300


def test_a_long_start_or_save_says_nothing_of_steps():
    own = limits()
    own.saw("start", 500)
    own.saw("checkpoint", 200)
    assert own.limit("step") == 60
    assert own.limit("checkpoint") == 600
    assert own.limit("start") == 1500
