"""The watchdog knows by name what may take long."""

from pretrain.checkpoint.callback import Checkpoints
from pretrain.checkpoint.restore import MAY_CHANGE
from pretrain.resilience.limits import CHECKPOINT
from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation


def test_saves_and_evaluations_have_their_names():
    assert (Checkpoints.phase, Evaluation.phase, Callback.phase) == (CHECKPOINT, "evaluation", "callbacks")


def test_its_keys_may_change_between_sessions():
    assert "watchdog." in MAY_CHANGE
