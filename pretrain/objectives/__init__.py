"""Objectives: a piece of text becomes inputs and labels; logits and labels become a loss."""

from pretrain.objectives import span_denoising  # noqa: F401  (registers the kind)
