"""What TensorBoard and Weights & Biases are given: scalars in summary, the same to both."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest

from pretrain.config.checks import check
from pretrain.config.schema import Experiment
from pretrain.errors import ConfigError
from pretrain.monitors.summaries import SHOWN, StepScalars, summaries
from pretrain.monitors.weights_and_biases import WeightsAndBiases

NAN = math.nan


def test_a_profile_becomes_three_scalars():
    profiles = {
        "gradient_norm": {"encoder": [1.0, 9.0, 2.0, NAN], "token_embedding": [0.5], "empty": [NAN, NAN]},
        "attention_entropy_mean": {"encoder.self_attention": [[0.9, 0.8], [0.7, 0.2], [0.6, 0.6]]},
        "scalar_gain": {"decoder.ffn": [0.1, -3.0, 0.2]},
    }
    assert summaries(profiles) == {
        "gradient_norm/encoder/median": 2.0,
        "gradient_norm/encoder/worst": 9.0,
        "gradient_norm/encoder/worst_layer": 1,
        "gradient_norm/token_embedding": 0.5,
        "attention_entropy_mean/encoder.self_attention/median": 0.6,  # the lowest head speaks for its layer
        "attention_entropy_mean/encoder.self_attention/worst": 0.2,
        "attention_entropy_mean/encoder.self_attention/worst_layer": 1,
        "scalar_gain/decoder.ffn/median": 0.1,
        "scalar_gain/decoder.ffn/worst": -3.0,
        "scalar_gain/decoder.ffn/worst_layer": 1,
    }


def step_scalars(log_interval=2):
    """Step 4 is logged, validated and sampled, step 5 nothing of that; and a trainer for them."""
    metrics = SimpleNamespace(latest=dict.fromkeys(SHOWN, 2.0) | {"spike_score": None})
    evaluation = SimpleNamespace(evaluated_step=4, validation_loss=3.5, source_use=0.25)
    depth = SimpleNamespace(latest=(4, {"update_norm": {"encoder": [1.0, 2.0]}}))
    experiment = Experiment.model_validate({"monitors": {"log_interval": log_interval, "wandb": True}})
    alerts = []
    folder = SimpleNamespace(path="RUN", alert=lambda step, reason: alerts.append(reason), alerts=alerts)
    trainer = SimpleNamespace(experiment=experiment, folder=folder, progress=SimpleNamespace(step=0))
    return StepScalars(metrics, evaluation, depth), trainer


def test_a_step_shows_what_is_its_own():
    scalars, trainer = step_scalars()
    at_4 = scalars.of(trainer, SimpleNamespace(step=4))
    assert (at_4["validation_loss"], at_4["source_use"]) == (3.5, 0.25)
    assert at_4["update_norm/encoder/worst"] == 2.0
    assert "spike_score" not in at_4  # not known yet
    assert scalars.of(trainer, SimpleNamespace(step=5)) == {}


class Client:
    """Stands for the package wandb."""

    def __init__(self, refuses="", breaks=""):
        self.refuses, self.breaks, self.calls = refuses, breaks, []

    def Settings(self, **settings):
        return settings

    def init(self, **given):
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.calls.append(("init", given))
        return self

    id = "abc"

    def define_metric(self, *names, **given):
        self.calls.append(("define_metric", names, given))

    def log(self, values):
        if self.breaks:
            raise OSError(28, self.breaks)
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


def session(client, monkeypatch, state=None):
    monkeypatch.setitem(sys.modules, "wandb", client)
    scalars, trainer = step_scalars()
    sink = WeightsAndBiases(scalars)
    sink.load_state_dict(state or {})
    sink.on_start(trainer)
    for step in (4, 5):
        sink.on_step_end(trainer, SimpleNamespace(step=step))
    sink.on_close(trainer)
    return sink, trainer


def test_weights_and_biases_gets_the_same(monkeypatch):
    client = Client()
    sink, _ = session(client, monkeypatch)
    (_, given), *_, (_, logged), last = client.calls
    assert (given["name"], given["dir"], given["id"], given["resume"]) == ("experiment", "RUN", None, "allow")
    assert given["config"]["monitors"]["wandb"] is True
    scalars, trainer = step_scalars()
    assert logged == {"step": 4} | scalars.of(trainer, SimpleNamespace(step=4))  # and nothing of step 5
    assert last == ("finish",)
    again = Client()
    session(again, monkeypatch, sink.state_dict())
    assert again.calls[0][1]["id"] == "abc"


@pytest.mark.parametrize("client", [Client(refuses="no API\nkey"), Client(breaks="no API key")])
def test_training_goes_on_where_the_client_cannot_begin_or_go_on(monkeypatch, client):
    _, trainer = session(client, monkeypatch)
    assert "log" not in [call[0] for call in client.calls]
    (reason,) = trainer.folder.alerts
    assert reason.startswith("monitors.wandb: ")
    assert reason.endswith("no API key; training goes on without it")


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_it_is_refused_where_it_is_not_installed(monkeypatch, found):
    """Before anything starts; a folder named wandb, as its client leaves them, is no package."""
    monkeypatch.setattr("pretrain.config.checks.find_spec", lambda name: found)
    check(Experiment(), 1, "cpu")
    with pytest.raises(ConfigError, match=r"^monitors\.wandb = true .*pip install wandb.*monitors\.wandb=false$"):
        check(Experiment.model_validate({"monitors": {"wandb": True}}), 1, "cpu")
