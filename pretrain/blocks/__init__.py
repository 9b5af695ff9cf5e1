"""Block designs: one file each, registered by `kind`. A new design is one new file, imported here."""

from pretrain.blocks import deepnorm, post_ln, pre_ln

__all__ = ["deepnorm", "post_ln", "pre_ln"]
