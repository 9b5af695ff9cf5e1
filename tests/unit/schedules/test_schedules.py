"""Every schedule against its written equation, and what all of them share."""

import itertools
import math

import pytest

import pretrain.schedules  # noqa: F401
from pretrain.errors import ConfigError
from pretrain.schedules.constant import ConstantConfig
from pretrain.schedules.cosine import CosineConfig
from pretrain.schedules.inverse_sqrt import InverseSqrtConfig
from pretrain.schedules.linear import LinearConfig
from pretrain.schedules.reciprocal_sqrt import ReciprocalSqrtConfig
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.wsd import WsdConfig

MAX_STEPS = 1000
WARMUP = 40
CONFIGS = {
    "constant": ConstantConfig(warmup_steps=WARMUP),
    "linear": LinearConfig(warmup_steps=WARMUP, final_factor=0.1),
    "cosine": CosineConfig(warmup_steps=WARMUP, final_factor=0.1),
    "inverse_sqrt": InverseSqrtConfig(warmup_steps=WARMUP),
    "wsd-linear": WsdConfig(warmup_steps=WARMUP, decay_steps=200, final_factor=0.1),
    "wsd-sqrt": WsdConfig(warmup_steps=WARMUP, decay_steps=200, decay_shape="sqrt", final_factor=0.1),
    "wsd-cosine": WsdConfig(warmup_steps=WARMUP, decay_steps=200, decay_shape="cosine", final_factor=0.1),
    "reciprocal_sqrt": ReciprocalSqrtConfig(warmup_steps=WARMUP, timescale=100, cooldown_steps=300),
}
W, T = WARMUP, MAX_STEPS
EQUATIONS = {
    "constant": lambda s: 1.0,
    "linear": lambda s: 1 - 0.9 * (s - W) / (T - W),
    "cosine": lambda s: 0.1 + 0.9 * (1 + math.cos(math.pi * (s - W) / (T - W))) / 2,
    "inverse_sqrt": lambda s: math.sqrt(W / s),
    "wsd-linear": lambda s: 1.0 if s <= 800 else 1 - 0.9 * (s - 800) / 200,
    "wsd-sqrt": lambda s: 1.0 if s <= 800 else 1 - 0.9 * ((s - 800) / 200) ** 0.5,
    "wsd-cosine": lambda s: 1.0 if s <= 800 else 0.1 + 0.9 * (1 + math.cos(math.pi * (s - 800) / 200)) / 2,
    "reciprocal_sqrt": lambda s: min(1, (T - s) / 300) / math.sqrt(1 + (s - W) / 100),
}
each = pytest.mark.parametrize("name", CONFIGS)


def build(config, max_steps=MAX_STEPS):
    return SCHEDULES.build(config, max_steps)


def test_every_registered_kind_is_tested_here():
    assert {config.kind for config in CONFIGS.values()} == set(SCHEDULES.kinds())


def test_the_default_kind_is_linear():
    assert SCHEDULES.config_types()[0] is LinearConfig


@each
def test_follows_its_equation_after_the_warm_up(name):
    schedule = build(CONFIGS[name])
    for step in range(WARMUP, MAX_STEPS + 1):
        assert schedule.factor(step) == pytest.approx(EQUATIONS[name](step), rel=1e-12, abs=1e-12), step


@each
def test_warm_up_is_a_straight_line_from_one_share_to_the_peak(name):
    schedule = build(CONFIGS[name])
    factors = [schedule.factor(step) for step in range(1, WARMUP + 1)]
    assert factors == pytest.approx([step / WARMUP for step in range(1, WARMUP + 1)])
    assert factors == sorted(factors)
    assert factors[-1] == 1.0


@each
def test_never_rises_after_the_warm_up_and_never_exceeds_the_peak(name):
    schedule = build(CONFIGS[name])
    factors = [schedule.factor(step) for step in range(WARMUP, MAX_STEPS + 1)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert max(factors) == 1.0


@each
def test_has_no_jump_at_its_joints(name):
    schedule = build(CONFIGS[name])
    # The steepest single step of all: the first step of the 1 - sqrt decay.
    limit = 0.9 * (1 / 200) ** 0.5 + 1e-9 if name == "wsd-sqrt" else 1 / WARMUP + 1e-9
    for step in range(1, MAX_STEPS):
        assert abs(schedule.factor(step + 1) - schedule.factor(step)) <= limit, step


@pytest.mark.parametrize(
    ("name", "last"),
    [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1), ("wsd-linear", 0.1), ("wsd-sqrt", 0.1), ("wsd-cosine", 0.1),
     ("inverse_sqrt", 0.2), ("reciprocal_sqrt", 0.0)],
)  # fmt: skip
def test_last_step(name, last):
    schedule = build(CONFIGS[name])
    assert schedule.factor(MAX_STEPS) == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd-linear", "wsd-sqrt", "wsd-cosine"])
def test_stays_at_the_end_value_behind_the_last_step(name):
    assert build(CONFIGS[name]).factor(MAX_STEPS + 500) == pytest.approx(0.1)


@pytest.mark.parametrize("config", [ConstantConfig(), LinearConfig(), CosineConfig(), WsdConfig()])
def test_without_warm_up_the_first_step_has_nearly_the_peak(config):
    assert build(config).factor(1) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("config", [LinearConfig, CosineConfig, ConstantConfig, InverseSqrtConfig])
def test_a_warm_up_as_long_as_the_run_ends_at_the_peak(config):
    assert build(config(warmup_steps=10), 10).factor(10) == 1.0


@each
def test_warm_up_longer_than_the_run_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps = 40 .* train\.max_steps = 20; set") as error:
        build(CONFIGS[name], 20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "key"),
    [(WsdConfig(warmup_steps=60, decay_steps=50), "decay_steps"),
     (ReciprocalSqrtConfig(warmup_steps=60, cooldown_steps=50), "cooldown_steps")],
)  # fmt: skip
def test_overlapping_warm_up_and_end_are_refused(config, key):
    with pytest.raises(ConfigError, match=rf"schedule\.{key} = 50 .* set schedule\.{key} to 40 or less"):
        build(config, 100)


def test_wsd_decays_over_a_tenth_by_default():
    schedule = build(WsdConfig())
    assert schedule.factor(900) == 1.0
    assert schedule.factor(901) == pytest.approx(0.99)


def test_published_vit_22b_schedule_at_points_worked_out_by_hand():
    schedule = build(ReciprocalSqrtConfig(warmup_steps=10_000, timescale=10_000, cooldown_steps=30_000), 177_000)
    assert schedule.factor(5_000) == 0.5
    assert schedule.factor(20_000) == pytest.approx(1 / math.sqrt(2))
    assert schedule.factor(40_000) == 0.5
    assert schedule.factor(162_000) == pytest.approx(0.5 / math.sqrt(16.2))


def test_inverse_sqrt_is_the_transformers_own_up_to_its_peak():
    schedule = build(InverseSqrtConfig(warmup_steps=4000), 100_000)
    for step in (1, 100, 4000, 4001, 50_000):
        vaswani = min(step**-0.5, step * 4000**-1.5)
        assert schedule.factor(step) == pytest.approx(vaswani * 4000**0.5)
