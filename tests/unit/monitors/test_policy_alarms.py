"""Which verdicts make the policy act, and what it goes back to."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pretrain.config.schema import PolicySection
from pretrain.monitors.policy import Policy
from pretrain.monitors.verdict_history import History
from pretrain.monitors.verdicts import Level, Verdict
from pretrain.training.callback import Remedy


def verdict(signal, level=Level.ALARM):
    return Verdict(signal, signal, "encoder", 0, level, 7.0, 1.0, f"{signal} is 7")


@pytest.fixture
def judged():
    """`judged(step, verdicts, sampled=True)`: what the policy does, as the cause that it found; None: nothing."""
    verdicts = SimpleNamespace(step=0, latest=[], sampled=lambda step: False)
    policy = Policy(PolicySection(on_alarm=("rollback",)), saves=None, verdicts=verdicts)
    trainer = SimpleNamespace()

    def judge(step, *latest, sampled=True):
        verdicts.step, verdicts.latest, verdicts.sampled = step, list(latest), lambda at: sampled
        policy.load_state_dict(json.loads(json.dumps(policy.state_dict())))  # as if each were a session's first
        try:
            policy._alarms(trainer, step)
        except Remedy as remedy:
            return remedy.apply.keywords["cause"]
        return None

    return judge


def test_an_alarm_acts_once_and_another_one_beside_it_again(judged):
    first, second = verdict("adam_rms"), verdict("norm_input_growth")
    assert judged(1, verdict("adam_rms", Level.WATCH)) is None
    assert judged(2, first).reason == "alarm: adam_rms is 7"
    assert judged(3, first) is None
    cause = judged(4, first, second)
    assert cause.reason == "alarm: norm_input_growth is 7"
    assert cause.figures == {"adam_rms": 7.0, "norm_input_growth": 7.0}
    assert judged(5, second) is None
    assert judged(6, first, second).reason == "alarm: adam_rms is 7"


def test_only_a_sample_without_an_alarm_is_calm(judged):
    judged(5)
    judged(7, sampled=False)  # the layers were not looked at
    assert judged(8, verdict("spike_score"), sampled=False).trusted == 5


def test_states_of_older_checkpoints():
    """Policy once kept whether there was any alarm, the history of verdicts its moves without their steps."""
    policy = Policy(PolicySection(), SimpleNamespace(), None)
    policy.load_state_dict({"rate": [0.5, 3, 9], "calm_sample": 4, "alarmed": True})
    assert (policy.rate.factor, policy.calm_sample, policy.alarmed) == (0.5, 4, set())
    history = History()
    history.load_state_dict({"update": [0.25, 0.5, [0.1, 0.2]], "zeros": {"encoder": [1, 0]}})
    assert history.state_dict()["update"] == [0.25, 0.5]
    assert history.zeros("encoder", 0) == 1
