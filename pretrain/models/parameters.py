"""What a parameter is, by the module that owns it: for weight decay and for monitors."""

from __future__ import annotations

from torch import nn

from pretrain.blocks.embeddings import Table
from pretrain.blocks.norms import NORMS


def parameter_roles(module: nn.Module) -> dict[str, str]:
    """Canonical name -> "norms", "embeddings", "biases", "gains" or "weights".

    A norm's own bias is a norm; a learned scalar (zero or one dimension, outside norms and biases) is a gain.
    """
    roles: dict[str, str] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if isinstance(owner, tuple(NORMS.values())):
                roles[full] = "norms"
            elif isinstance(owner, Table):
                roles[full] = "embeddings"
            elif name == "bias":
                roles[full] = "biases"
            else:
                shape = getattr(parameter, "ds_shape", parameter.shape)  # where it is sharded, the parameter is empty
                roles[full] = "gains" if len(shape) < 2 else "weights"
    return roles


def row_group(name: str) -> tuple[str, int]:
    """(group, row) of a canonical parameter name: the rows of a per-layer figure.

    "decoder.layers.12.ffn.fc1.weight" -> ("decoder", 12); everything else is a group of one row by its first
    words: "token_embedding", "encoder.embeddings", "decoder.final_norm".
    """
    parts = name.split(".")
    if "layers" in parts:
        at = parts.index("layers")
        return ".".join(parts[:at]), int(parts[at + 1])
    return ".".join(parts[:2]) if parts[0] in ("encoder", "decoder") else parts[0], 0
