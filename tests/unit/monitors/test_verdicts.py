"""Verdicts of planted profiles: each signal's bounds, place and sentence, and when an alert is told."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from pretrain.config.schema import Experiment, VerdictsSection
from pretrain.monitors.alerts import CALM, Verdicts
from pretrain.monitors.verdict_history import History
from pretrain.monitors.verdict_rules import RULES
from pretrain.monitors.verdicts import Level, telling, verdicts, worst_of

EXPERIMENT = Experiment()
SECTION = EXPERIMENT.verdicts
CALM_PROFILES = {
    "gradient_norm": {"encoder": [1.0, 2.0, 3.0], "token_embedding": [4.0]},
    "update_ratio": {"encoder": [1e-3, 2e-3, 1e-3], "encoder.norms": [math.nan, 1e-3, 1e-3]},
    "adam_rms": {"encoder": [1.0, 0.9, 1.1]},
    "norm_input_growth": {"encoder.ffn": [1.0, 1.2, 1.5]},
    "attention_logit_max": {"encoder.self_attention": [[3.0, 4.0], [2.0, 9.0], [1.0, 1.0]]},
    "attention_logits_above_100": {"encoder.self_attention": [[0.0, 0.0]] * 3},
    "attention_entropy_mean": {"encoder.self_attention": [[0.9, 0.8], [0.7, 0.9], [0.9, 0.9]]},
    "qk_norm_gain_max": {"encoder.self_attention": [1.0, 1.0, 1.1]},
    "token_cosine": {"encoder": [0.1, 0.2, 0.3]},
    "high_frequency_ratio": {"encoder": [0.9, 0.9, 0.8]},
    "effective_rank": {"encoder": [9.0, 8.0, 7.0]},
    "model_update": {"model": [0.5]},
    "spike_score": {"model": [0.3]},
    "norm_input_gradient": {"encoder.ffn": [1e-3, 2e-3, 1e-3]},
    "model_update_step": {"model": [0.4]},
    "skipped_steps": {"model": [0]},
    "nonfinite_steps": {"model": [0]},
    "source_use": {"model": [1.2]},
}


def with_value(figure, group, layer, value):
    profiles = json.loads(json.dumps(CALM_PROFILES))
    profiles[figure][group][layer] = value
    return profiles


def judged(profiles, history=None, experiment=EXPERIMENT):
    return {verdict.signal: verdict for verdict in verdicts(profiles, history or History(), experiment)}


def test_a_calm_sample_is_ok_in_every_signal():
    found = judged(CALM_PROFILES)
    quiet = {"gradient_norm_jump"}  # says nothing before there are samples to compare with
    assert set(found) == {"not_finite", *(rule.name for rule in RULES)} - quiet
    assert {verdict.level for verdict in found.values()} == {Level.OK}
    assert worst_of(list(found.values())) is None
    assert found["attention_logit_max"].value == 9.0
    assert (found["attention_logit_max"].group, found["attention_logit_max"].layer) == ("encoder.self_attention", 1)


def test_every_threshold_has_a_rule_and_every_rule_a_threshold():
    assert {rule.name for rule in RULES} == set(VerdictsSection.model_fields)


@pytest.mark.parametrize(
    ("figure", "group", "watch", "alarm"),
    [
        ("attention_logit_max", "encoder.self_attention", [1.0, 51.0], [120.0, 1.0]),
        ("attention_logits_above_100", "encoder.self_attention", [0.0, 1e-6], [0.5, 0.0]),
        ("norm_input_growth", "encoder.ffn", 11.0, 101.0),
        ("update_ratio", "encoder", 0.2, 2.0),
        ("adam_rms", "encoder", 2.4, 11.0),
        ("qk_norm_gain_max", "encoder.self_attention", 5.0, 9.0),
        ("token_cosine", "encoder", 0.995, None),
        ("high_frequency_ratio", "encoder", 0.05, None),
        ("effective_rank", "encoder", 1.5, 1.1),
        ("source_use", "model", 1e-6, None),
        ("spike_score", "model", 7.0, 13.0),
        ("skipped_steps", "model", 3, 6),
        ("nonfinite_steps", "model", 1, 3),
    ],
)
def test_one_value_too_many_raises_its_signal_alone_and_names_the_place(figure, group, watch, alarm):
    layer = 0 if group == "model" else 2
    for level, value in ((Level.WATCH, watch), (Level.ALARM, alarm))[: 1 if alarm is None else 2]:
        first, *others = verdicts(with_value(figure, group, layer, value), History(), EXPERIMENT)
        assert {verdict.level for verdict in others} == {Level.OK}
        assert (first.signal, first.group, first.layer, first.level) == (figure, group, layer, level)
        assert first.threshold == getattr(SECTION, figure)[level - 1]
        assert first.sentence.startswith(f"{figure} is {first.value:.3g} in {group}")
        assert ("layer 2" in first.sentence) == (group != "model")
        assert "\n" not in first.sentence
        assert worst_of([first, *others]) is first


def test_a_bound_that_is_null_is_never_passed():
    identical = judged(with_value("token_cosine", "encoder", 0, 1.0000002))["token_cosine"]
    assert (identical.level, identical.threshold) == (Level.WATCH, 0.99)
    never = Experiment.model_validate({"verdicts": {"token_cosine": [None, None]}})
    ignored = judged(with_value("token_cosine", "encoder", 0, 1.0), experiment=never)["token_cosine"]
    assert (ignored.level, ignored.threshold) == (Level.OK, None)
    assert ignored.sentence == "token_cosine is 1 in encoder, layer 0 (no bound)"


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (0.99973, 0.99, "0.9997"),
        (0.9999994, 0.99, "0.999999"),  # near the end of its range, but not there
        (0.9901, 0.99, "0.9901"),
        (0.048213, 0.05, "0.0482"),
        (0.0499999, 0.05, "0.0499999"),
        (5234.7, 10.0, "5.23e+03"),
        (3.0, 2.3, "3"),
        (1.0, None, "1"),
    ],
)
def test_a_value_has_the_digits_that_tell_it_from_its_bound(value, bound, text):
    assert telling(value, bound) == text


def test_a_dead_encoder_is_said_in_words_that_help():
    def sentence(**sections):
        experiment = Experiment.model_validate(sections)
        return judged(with_value("source_use", "model", 0, 1.5e-6), experiment=experiment)["source_use"].sentence

    said = sentence()
    assert said.startswith("source_use is 1.5e-06 in model (watch below 0.05): the decoder predicts as well from")
    for advice in ("lower optimizer.lr", "longer training", "bart_denoising"):
        assert advice in said
    assert "fewer layers" not in said
    assert "an objective" not in sentence(objective={"kind": "bart_denoising"}), "it has such an objective"


def test_thresholds_are_the_experiments():
    bounds = {"adam_rms": (20.0, 30.0), "token_cosine": (0.05, 0.2)}
    experiment = Experiment.model_validate({"verdicts": bounds})
    assert judged(with_value("adam_rms", "encoder", 0, 11.0), experiment=experiment)["adam_rms"].level == Level.OK
    assert judged(CALM_PROFILES, experiment=experiment)["token_cosine"].level == Level.ALARM


def test_a_low_entropy_is_an_alarm_only_beside_large_logits_of_the_same_layer():
    low = with_value("attention_entropy_mean", "encoder.self_attention", 1, [0.01, 0.0])
    assert judged(low)["attention_entropy_mean"].level == Level.WATCH
    low["attention_logit_max"]["encoder.self_attention"][2] = [60.0, 1.0]
    assert judged(low)["attention_entropy_mean"].level == Level.WATCH
    low["attention_logit_max"]["encoder.self_attention"][1] = [60.0, 1.0]
    assert judged(low)["attention_entropy_mean"].level == Level.ALARM


def test_one_sharp_head_is_no_collapse():
    sharp = with_value("attention_entropy_mean", "encoder.self_attention", 1, [0.0, 0.9])
    assert judged(sharp)["attention_entropy_mean"].level == Level.OK


class TestHistory:
    def after(self, samples, figure="gradient_norm", step=20):
        history = History()
        for number, values in enumerate(samples):
            history.add(step + number, {figure: values})
        again = History()
        again.load_state_dict(json.loads(json.dumps(history.state_dict())))
        return again

    def test_a_gradient_is_compared_with_the_median_of_its_own_layer(self):
        samples = [{"encoder": [1.0, 100.0]}, {"encoder": [2.0, 100.0]}, {"encoder": [3.0, 90.0]}]
        jump = {"gradient_norm": {"encoder": [25.0, 100.0]}}
        assert "gradient_norm_jump" not in judged(jump, self.after(samples))
        samples.append({"encoder": [50.0, 100.0]})  # the median of 1, 2, 3, 50 is 2.5
        found = judged(jump, self.after(samples))["gradient_norm_jump"]
        assert (found.value, found.layer, found.level) == (10.0, 0, Level.OK)
        jump["gradient_norm"]["encoder"][0] = 26.0
        assert judged(jump, self.after(samples))["gradient_norm_jump"].level == Level.WATCH

    def test_a_part_that_stays_little_of_the_whole_has_not_jumped(self):
        """As measured where an encoder came to life: 2.6e-4 became 3.8e-2, beside a whole gradient of 0.73."""
        calm = {"encoder.embeddings": [2.6e-4], "token_embedding": [0.6], "decoder": [0.4]}
        found = {}
        for size in (3.8e-2, 3.8):
            jump = {"gradient_norm": {**calm, "encoder.embeddings": [size]}}
            found[size] = judged(jump, self.after([calm] * 8))["gradient_norm_jump"]
        assert (found[3.8e-2].level, found[3.8e-2].value) == (Level.OK, 1.0)
        assert (found[3.8].level, found[3.8].group) == (Level.ALARM, "encoder.embeddings")

    def test_samples_without_a_gradient_are_counted_in_a_row(self):
        zero = {"encoder": [1.0, 0.0]}
        counts = [judged({"gradient_norm": zero}, self.after([zero] * n))["gradient_norm_zero"] for n in range(5)]
        assert [verdict.value for verdict in counts] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert [verdict.level.name for verdict in counts] == ["OK", "WATCH", "WATCH", "ALARM", "ALARM"]
        assert {verdict.layer for verdict in counts} == {1}
        between = self.after([zero, zero, {"encoder": [0.0, 1.0]}])
        found = judged({"gradient_norm": zero}, between)["gradient_norm_zero"]
        assert (found.value, found.layer) == (1.0, 1)

    @pytest.mark.parametrize(
        ("every", "updates", "moves", "value"),
        [
            (8, [5.0, *[5.1] * 6], [5.0, *[0.1] * 6], 5.1 / 5.1),  # jumped in steps 1 to 10, hardly moved since
            (8, [0.1, *[5.1] * 6], [0.1, 5.0, *[0.1] * 5], 1.0),  # step 9 is early still
            (8, [0.1, 0.5, *[5.1] * 6], [0.1, 0.5, 5.0, *[0.1] * 5], 0.5 / 5.1),  # warmed up, then converged
            (8, [5.0, *[5.1] * 6], [5.0, *[2.0] * 6], 0.0),  # as far away as before, and it moves on
            (8, [5.0, 5.1, 5.1], [5.0, 0.1, 0.1], 0.0),  # too few to say
            (1, [5.0, *[5.1] * 8], [5.0, *[0.01] * 8], 0.0),  # within the first steps all that was made was early
            (1, [5.0, *[5.1] * 35], [5.0, *[0.01] * 35], 1.0),
            (1, [5.0, *[5.1] * 35], [5.0, *[0.1] * 35], 0.0),  # small moves at every step are a way
            (8, [math.nan] * 7, [math.nan] * 7, None),
        ],
    )
    def test_a_model_that_jumped_and_stands_still(self, every, updates, moves, value):
        def sample(update, move):
            return {"model_update": {"model": [update]}, "model_update_step": {"model": [move]}}

        history = History()
        for number, (update, move) in enumerate(zip(updates[:-1], moves, strict=False)):
            history.add(1 + every * number, sample(update, move))  # steps 1, 9, 17 ...
        again = History()
        again.load_state_dict(json.loads(json.dumps(history.state_dict())))
        found = judged(sample(updates[-1], moves[-1]), again).get("model_update_stuck")
        assert (found.value if found else None) == (pytest.approx(value, abs=1e-12) if value is not None else None)

    def test_whole_layers_alone_are_remembered(self):
        """A checkpoint of 1000 layers has to hold it."""
        rows = {"encoder": [1.0, 1.0], "encoder.ffn": [1.0, 1.0], "encoder.embeddings": [1.0]}
        history = self.after([rows] * 20)
        assert list(history.state_dict()["gradients"]) == ["encoder", "encoder.embeddings"]
        assert len(history.state_dict()["gradients"]["encoder"]) == 8


class TestNotFinite:
    @pytest.mark.parametrize(
        ("figure", "value", "level"),
        [
            ("gradient_norm", math.nan, Level.ALARM),
            ("gradient_norm", None, Level.ALARM),  # as a file has it
            ("update_ratio", math.inf, Level.ALARM),
            ("update_ratio", math.nan, Level.OK),  # weights that were all zero
            ("token_cosine", -math.inf, Level.ALARM),
        ],
    )
    def test_what_counts(self, figure, value, level):
        profiles = {**CALM_PROFILES, figure: {"encoder": [1e-3, value, 1e-3]}}
        found = judged(profiles)["not_finite"]
        assert found.level == level
        assert found.value == (level == Level.ALARM)
        if level:
            assert (found.figure, found.group, found.layer) == (figure, "encoder", 1)
            assert f"first {figure} in encoder, layer 1" in found.sentence

    def test_values_that_are_no_numbers_do_not_hide_the_others(self):
        profiles = with_value("adam_rms", "encoder", 0, math.nan)
        profiles["adam_rms"]["encoder"][1] = 11.0
        found = judged(profiles)
        assert (found["adam_rms"].level, found["adam_rms"].value) == (Level.ALARM, 11.0)


def test_missing_figures_are_no_error():
    assert verdicts({}, History(), EXPERIMENT) == []
    assert list(judged({"weight_norm": {"encoder": [1.0]}})) == ["not_finite"]


class TestAlerts:
    @pytest.fixture
    def told(self):
        """`told(value of adam_rms, ...)`: the alerts of so many samples, as (step, level)."""
        events = []
        depth, metrics = SimpleNamespace(latest=(0, {})), SimpleNamespace(latest={})
        self.evaluation = SimpleNamespace(evaluated_step=0, source_use=None)
        self.callback = Verdicts(depth, metrics, self.evaluation)
        self.written = {}
        folder = SimpleNamespace(
            event=lambda event, step, **fields: events.append((event, step, fields)), write=self.written.__setitem__
        )
        steps = iter(range(1, 100))

        def feed(*values):
            events.clear()
            for value in values:
                step = next(steps)
                depth.latest = step, {"adam_rms": {"encoder": [1.0, 1.0, value]}}
                self.trainer = SimpleNamespace(
                    folder=folder, experiment=EXPERIMENT, engine=SimpleNamespace(loss_scaler_state=dict)
                )
                self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=1.0))
            assert {event for event, *_ in events} <= {"alert"}
            self.events = list(events)
            return [(step, fields["level"]) for _, step, fields in events]

        return feed

    def test_once_when_it_gets_worse(self, told):
        assert told(1.0, 3.0, 3.0, 20.0, 21.0) == [(2, "watch"), (4, "alarm")]
        (_, _, fields), _ = self.events
        assert fields["signal"] == "adam_rms"
        assert fields["figure"] == "adam_rms"
        assert (fields["group"], fields["layer"], fields["value"], fields["threshold"]) == ("encoder", 2, 3.0, 2.3)
        assert fields["reason"].startswith("adam_rms is 3 in encoder, layer 2 (watch above 2.3)")

    def test_what_says_the_same_is_told_once(self, told):
        told(1.0)
        alike = {"token_cosine": {"encoder": [0.995]}, "high_frequency_ratio": {"encoder": [0.05]}}
        self.callback.depth.latest = 2, alike
        told_signals = []
        self.trainer.folder.event = lambda event, step, **fields: told_signals.append(fields["signal"])
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=2, lr=1.0))
        assert told_signals == ["token_cosine"]
        assert {verdict.signal for verdict in self.callback.latest if verdict.level} == set(alike), "both are shown"
        self.callback.depth.latest = (
            3,
            {"token_cosine": {"encoder": [0.5]}, "high_frequency_ratio": {"encoder": [0.05]}},
        )
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=3, lr=1.0))
        assert told_signals == ["token_cosine"], "told with the other, and no worse since"

    def test_source_use_stays_until_it_is_measured_again(self, told):
        """Also over samples of the layers, in which it is not measured."""
        told(1.0)
        step = EXPERIMENT.schedule.warmup_steps + 1
        self.evaluation.source_use, self.evaluation.evaluated_step = 1e-6, step
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=1.0))
        for sampled in (False, True, True):
            step += 1
            self.callback.depth.latest = (step, {"adam_rms": {"encoder": [1.0]}}) if sampled else (0, {})
            self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=1.0))
            assert self.callback.worst.signal == "source_use"
        self.evaluation.source_use, self.evaluation.evaluated_step = 0.9, step + 1
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=step + 1, lr=1.0))
        assert self.callback.worst is None

    def test_source_use_is_judged_where_it_was_measured_after_the_warm_up(self, told):
        told(1.0)
        warmup = EXPERIMENT.schedule.warmup_steps
        self.evaluation.source_use = 1e-6
        for step, evaluated, level in ((warmup, True, None), (warmup + 1, False, None), (warmup + 2, True, "watch")):
            self.evaluation.evaluated_step = step if evaluated else 0
            self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=1.0))
            found = [verdict.level.name.lower() for verdict in self.callback.latest if verdict.signal == "source_use"]
            assert found == ([level] if level else [])

    def test_again_only_after_a_calm(self, told):
        assert told(3.0, 1.0, 3.0, 1.0, 1.0, 3.0) == [(1, "watch")]
        assert told(*[1.0] * CALM, 3.0) == [(6 + CALM + 1, "watch")]

    def test_a_calm_before_a_resume_counts(self, told):
        told(3.0, *[1.0] * (CALM - 1))
        state = json.loads(json.dumps(self.callback.state_dict()))
        self.callback._told, self.callback._better = {}, {}
        self.callback.load_state_dict(state)
        assert told(3.0) == []
        told(*[1.0] * CALM)
        assert len(told(3.0)) == 1

    def test_a_step_that_was_not_sampled_says_nothing_of_the_layers(self, told):
        told(20.0)
        before, latest = dict(self.written), self.callback.latest
        for step in range(2, 9):
            self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=1.0))
        assert (self.written, self.callback.latest) == (before, latest)
        assert self.callback.step == 8
        assert not self.callback.sampled(8)

    def test_batches_that_were_thrown_away_are_told_at_once_and_forgotten(self, told):
        told(1.0)
        self.events = []
        for finite in (True, False, False, False):
            self.trainer.folder.event = lambda event, step, **fields: self.events.append(fields)
            self.callback.on_skip(self.trainer, 2, SimpleNamespace(finite=finite))
        assert [(fields["signal"], fields["level"]) for fields in self.events] == [
            ("skipped_steps", "watch"),
            ("nonfinite_steps", "watch"),
            ("nonfinite_steps", "alarm"),
        ]
        assert json.loads(self.written["verdicts.json"])["verdicts"][0]["signal"] == "nonfinite_steps"
        self.callback.load_state_dict(json.loads(json.dumps(self.callback.state_dict())))
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=101, lr=1.0))
        assert self.callback.worst.signal == "nonfinite_steps"
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=102, lr=1.0))
        assert self.callback.worst is None

    def test_a_model_stands_still_by_nature_where_the_rate_is_low(self, told):
        told(1.0)
        peak = EXPERIMENT.optimizer.lr
        for step, lr in ((2, 0.6 * peak), (3, 0.4 * peak)):
            self.callback.depth.latest = step, {"model_update_step": {"model": [0.1]}}
            self.callback.on_step_end(self.trainer, SimpleNamespace(step=step, lr=lr))
            assert ("model_update_stuck" in [verdict.signal for verdict in self.callback.latest]) == (step == 2)

    def test_overflows_on_the_way_to_fp16s_loss_scale_are_no_trouble(self, told):
        told(1.0)
        self.trainer.engine.loss_scaler_state = lambda: {"cur_scale": 65536.0}
        self.callback.on_skip(self.trainer, 2, SimpleNamespace(finite=False))
        assert self.callback.worst is None

    def test_the_newest_are_in_a_file_and_the_worst_is_known(self, told):
        told(1.0, 20.0)
        newest = json.loads(self.written["verdicts.json"])
        assert newest["step"] == 2
        assert newest["verdicts"][0]["signal"] == "adam_rms"
        assert newest["verdicts"][0]["level"] == "alarm"
        assert self.callback.worst.signal == "adam_rms"
        told(1.0)
        assert self.callback.worst is None

    def test_the_spike_score_is_judged_at_every_step(self, told):
        told(1.0)
        self.callback.metrics.latest = {"spike_score": 15.0}
        self.callback.on_step_end(self.trainer, SimpleNamespace(step=2, lr=1.0))
        assert self.callback.worst.signal == "spike_score"
        assert [verdict.signal for verdict in self.callback.latest].count("spike_score") == 1

    def test_the_spike_score_of_a_sampled_step(self, told):
        self.callback.metrics.latest = {"spike_score": 15.0}
        assert told(1.0) == [(1, "alarm")]
        assert self.callback.worst.signal == "spike_score"
        self.callback.metrics.latest = {"spike_score": None}  # too few losses yet
        told(1.0)
        assert "spike_score" not in [verdict.signal for verdict in self.callback.latest]
