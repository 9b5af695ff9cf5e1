"""Block designs: one file each, registered by `kind`. A new design is one new file, imported here."""

from pretrain.blocks import (
    b2t,
    deepnorm,
    deepnorm_sqrt,
    keel,
    lns,
    parallel,
    peri_ln,
    post_ln,
    post_ln_init,
    pre_ln,
    rezero,
    sas,
    sas_p,
    sub_ln,
    value_skipinit,
)

__all__ = [
    "b2t",
    "deepnorm",
    "deepnorm_sqrt",
    "keel",
    "lns",
    "parallel",
    "peri_ln",
    "post_ln",
    "post_ln_init",
    "pre_ln",
    "rezero",
    "sas",
    "sas_p",
    "sub_ln",
    "value_skipinit",
]
