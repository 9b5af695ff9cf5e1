"""No parameter without a gradient: ZeRO and the pipeline wait for every parameter's."""

from __future__ import annotations

import pytest
import torch
from targets_models import SOURCE_DOCUMENTS, TARGET_DOCUMENTS, batch, logits, section, whole

import pretrain.blocks  # noqa: F401
from pretrain.blocks.registry import BLOCKS
from pretrain.models.parameters import parameter_roles
from pretrain.registry import Section

torch.set_num_threads(1)
CASES = [(family, kind) for kind in BLOCKS.kinds() for family in sorted(BLOCKS[kind].families)]
OPTIONS = [
    {},
    {"norm": "rms_norm", "bias": False, "activation": "swiglu", "positions": "rotary", "tie_embeddings": False},
    {"qk_norm": True, "activation": "geglu", "positions": "sinusoidal", "embedding_norm": False, "dropout": 0.2},
    {"init_std": 0.02, "embedding_gradient_shrink": 0.1, "norm_eps": 1e-6, "bias": False, "dropout": 0.1},
]


def objection(config):
    return BLOCKS.of(config.block).objection(config.block, config)


def allowed(config):
    """The options without those that the design refuses."""
    refused = {key: False for key in ("qk_norm",) if (objection(config) or "").startswith(f"model.{key} ")}
    refused |= {key: None for key in ("init_std",) if (objection(config) or "").startswith(f"model.{key} ")}
    config = config.model_copy(update=refused)
    assert objection(config) is None, objection(config)
    return config


def gradients(config, segmented, stirred):
    masks = TARGET_DOCUMENTS if config.family == "decoder" else SOURCE_DOCUMENTS
    model = whole(config, segmented, stirred).train()
    out = logits(model, config, batch(config.family, masks if segmented else None), segmented)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize("changes", OPTIONS, ids=["plain", "llama-like", "norms", "stated std"])
def test_every_parameter_has_a_gradient(family, kind, changes):
    """At the start it may be zero, but it is there; away from special values it is not zero.

    Zero by mathematics: a shift of all keys, which softmax does not see, where neither a norm nor a turn follows it.
    """
    config = allowed(section(family, kind, **changes))
    at_start = gradients(config, segmented=False, stirred=False)
    assert [name for name, gradient in at_start.items() if gradient is None] == []
    found = gradients(config, segmented=True, stirred=True)
    normed = any("k_norm" in name for name in found)
    for name, gradient in found.items():
        assert gradient is not None, name
        turned = config.positions == "rotary" and "cross_attention" not in name
        shift = name.endswith("k_proj.bias") and not (normed or turned)
        assert shift or float(gradient.abs().max()) > 1e-9, name


@pytest.mark.parametrize("kind", BLOCKS.kinds())
def test_every_switch_of_a_design_leaves_no_parameter_idle(kind):
    """Each true-or-false key of the block's own config, turned."""
    config_type: type[Section] = BLOCKS.config(kind)
    for key, default in config_type().model_dump().items():
        if not isinstance(default, bool):
            continue
        for family in sorted(BLOCKS[kind].families):
            config = section(family, kind).model_copy(update={"block": config_type(**{key: not default})})
            if objection(config) is not None:
                continue
            missing = [name for name, gradient in gradients(config, False, False).items() if gradient is None]
            assert missing == [], (family, key)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_roles(family, kind):
    """Weight decay by what a parameter is: matrices are weights, vectors outside norms and biases are gains."""
    model = whole(section(family, kind))
    for name, role in parameter_roles(model).items():
        parameter = model.get_parameter(name)
        if "norm" in name.split(".")[-2]:
            assert role == "norms", name
        elif "embedding" in name or "positions" in name:
            assert role == "embeddings", name
        elif name.endswith("bias"):
            assert role == "biases", name
        else:
            assert role == ("weights" if parameter.ndim == 2 else "gains"), name
