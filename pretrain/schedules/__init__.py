"""Learning-rate schedules: one file each, pure functions of the step. The first one imported is the default kind."""

from pretrain.schedules import linear  # isort: skip  (first: the default kind)
from pretrain.schedules import constant, cosine, inverse_sqrt, reciprocal_sqrt, wsd

__all__ = ["constant", "cosine", "inverse_sqrt", "linear", "reciprocal_sqrt", "wsd"]
