"""Objectives: a piece of text becomes inputs and labels; logits and labels become a loss.

One file each, registered by `kind`. A new objective is one new file, imported here.
"""

from pretrain.objectives import bart_denoising, causal_lm, masked_lm, prefix_lm, span_denoising, translation

__all__ = ["bart_denoising", "causal_lm", "masked_lm", "prefix_lm", "span_denoising", "translation"]
