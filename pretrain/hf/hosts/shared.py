"""What several hosts share: which options classes have, pieces of their name maps, checks of their configs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import GenerationConfig, PretrainedConfig

from pretrain.blocks.norms import LayerNorm
from pretrain.config.schema import ModelSection
from pretrain.errors import UserError
from pretrain.hf.trained import Architecture
from pretrain.hf.transforms import Copy, Entry, Fold, Rows, SinusoidRows, Transform
from pretrain.objectives.tokens import SpecialTokens

POST_LN = frozenset({"post_ln", "post_ln_init", "deepnorm", "deepnorm_sqrt"})
"""Designs that are Post-LN once their branches' outputs are divided by the built block's alpha."""
PRE_LN = frozenset({"pre_ln", "lns"})
"""Designs that are Pre-LN once their norms are multiplied by the built block's scale (lns)."""

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
"""Ours -> transformers' name in ACT2FN."""
OUR_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"swish": "silu", "gelu_new": "gelu_tanh"}

ATTENTION = {f"self_attn.{part}": f"self_attention.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
FAIRSEQ_LAYER = ATTENTION | {
    "self_attn_layer_norm": "self_attention_norm",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    "final_layer_norm": "ffn_norm",
}
"""Module in a layer of the classes that come from fairseq (Bart, OPT) -> ours."""
BRANCH_OUTPUTS = {"self_attention.out_proj", "cross_attention.out_proj", "ffn.fc2"}
"""Our modules that end a branch."""
NORMS = {"self_attention_norm", "ffn_norm"}


def objections(
    architecture: Architecture, eps: float, embedding_norm: bool, biases: bool = True, scales_tokens: bool = False
) -> Iterator[str]:
    """What no class here has, and what depends on the class.

    Args:
        architecture: the model.
        eps: of the class's norms.
        embedding_norm: whether the class normalises embeddings.
        biases: whether the class always has biases.
        scales_tokens: whether it can multiply the token embedding by sqrt(hidden_size).
    """
    model = architecture.model
    if model.norm != "layer_norm":
        yield f"model.norm is {model.norm}, and its norms are LayerNorms"
    if model.activation not in ACTIVATIONS:
        yield f"model.activation is {model.activation}, and its FFN has no gate"
    if model.qk_norm:
        yield "model.qk_norm is true, and it has no norms on q and k"
    if model.positions == "rotary":
        yield "model.positions is rotary, and it adds positions to the embedding"
    if model.positions == "sinusoidal" and not scales_tokens:
        yield "model.positions is sinusoidal, which multiplies the token embedding by sqrt(model.hidden_size)"
    if biases and not model.bias:
        yield "model.bias is false, and it always has biases"
    if embedding_norm and not model.embedding_norm:
        yield "model.embedding_norm is false, and it always normalises embeddings"
    if not embedding_norm and model.embedding_norm:
        yield "model.embedding_norm is true, and it does not normalise embeddings"
    if not math.isclose(model.norm_eps, eps):
        yield f"model.norm_eps is {model.norm_eps:g}, and its norms have {eps:g}"
    for name, layer in architecture.skeleton.built_layers():
        wanted = getattr(layer, "alpha", 1.0) ** 2 * eps
        for norm in (module for module in layer.modules() if isinstance(module, LayerNorm)):
            if not math.isclose(norm.eps, wanted, rel_tol=1e-12):
                yield f"the eps of a norm in {name} is {norm.eps}, and the fold needs alpha^2 * {eps:g} = {wanted}"


def module(theirs: str, ours: str, transform: Transform | None = None, bias: bool = True) -> Iterator[Entry]:
    """Weight and bias of a linear map or a norm."""
    for part in ("weight", "bias") if bias else ("weight",):
        yield Entry(f"{theirs}.{part}", f"{ours}.{part}", transform or Copy())


def positions(theirs: str, stack: str, architecture: Architecture, offset: int = 0) -> Entry:
    """A learned table: ours from row `offset` on, or our sinusoids as its content (Bart, which scales the tokens)."""
    if architecture.model.positions == "sinusoidal":
        return Entry(theirs, None, constant=SinusoidRows(offset))
    return Entry(theirs, f"{stack}.embeddings.positions.weight", Rows(offset))


def layers(architecture: Architecture) -> Iterator[tuple[str, nn.Module]]:
    """(canonical name, module) of the blocks, in order."""
    return ((name, layer) for name, layer in architecture.skeleton.built_layers() if ".layers." in name)


def fold_of(layer: nn.Module, ours: str) -> Transform:
    """What a block's constants do to one of its modules, by the very constants that it was trained with."""
    if ours in BRANCH_OUTPUTS and hasattr(layer, "alpha"):
        return Fold(float(layer.alpha))  # type: ignore[arg-type]
    if ours in NORMS and hasattr(layer, "scale"):
        return Fold(1.0 / float(layer.scale))  # type: ignore[arg-type]
    return Copy()


def continues(architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig:
    """Defaults of generate() for a decoder: as far as its positions go."""
    return GenerationConfig(
        pad_token_id=tokens.pad,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
        max_length=architecture.target_length,
    )


def expect(config: PretrainedConfig, family: str, **wanted: Any) -> None:
    """Raises UserError where the config says other than `wanted`: the class then computes what no family does."""
    for key, value in wanted.items():
        if (found := getattr(config, key)) != value:
            raise UserError(f"config.json: {key} = {found!r} is not what our {family} can hold exactly")


def activation_of(config: PretrainedConfig, key: str, family: str) -> str:
    """Our name of the activation that the config's `key` states. Raises UserError where we have none."""
    theirs = getattr(config, key)
    if theirs not in OUR_ACTIVATIONS:
        raise UserError(f"config.json: {key} = {theirs!r} is not what our {family} can hold exactly")
    return OUR_ACTIVATIONS[theirs]


def model_section(known: Mapping[str, Any], block: str, **values: Any) -> ModelSection:
    """The model section of an imported folder: what its config says, and what is known beside it.

    Args:
        known: as of `Host.architecture_of`.
        block: kind of the block where none is known.
        values: from the config.
    """
    return ModelSection.model_validate({"block": {"kind": block}, **known, **values})
