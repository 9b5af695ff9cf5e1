"""How far training has moved the model as a function: ||F(x, theta_t) - F(x, theta_0)|| on fixed samples.

The measure of DeepNet (Wang et al. 2022, arXiv 2203.00555, section 3), whose F is the last norm's output: here what
the layers hand to the head, the last block's in post-norm designs and the final norm's in pre-norm ones.

The paper states neither the samples nor the norm's reduction. Here x is the probe, without dropout; ||.|| is the
Frobenius norm over its tokens (padding left out) divided by the square root of their number: the RMS over tokens of a
token's L2 norm. Behind a norm with gain 1 a token's own is sqrt(d), so two unrelated outputs differ by sqrt(2 d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.monitors.listening import Hooks
from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import NOTHING, Part, Profiles, Signal
from pretrain.monitors.tokens import of_probe, real_tokens
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.values import text

GROUP = "model"
INITIAL, PREVIOUS = "model_output_initial", "model_output_previous"


class ModelUpdate(Signal):
    """The update against the weights that the run began with, and against the previous sample; one row each.

    F over the whole probe goes through the sum reduction, so that every rank knows it in every layout: P x T x d
    numbers. F of the start and of the previous sample are kept in the checkpoints.
    """

    wants_probe = True

    def __init__(self, spec: ModelSpec):
        *_, last, _ = spec.layers
        self.layer = last.name
        self.stack = last.name.split(".")[0]
        self.width = width(spec)
        self.initial: Tensor | None = None
        """F before step 1, flat [P * T * d], padding 0, fp32; None if it is not known."""
        self.previous: Tensor | None = None
        self.probe_fingerprint = ""
        self.hooks = Hooks()

    def start(self, engine: Engine, probe: Probe, step: int) -> str:
        measured_on, self.probe_fingerprint = self.probe_fingerprint, probe.fingerprint()
        if step == 0:
            self.before_probe(engine, probe)
            probe.run(engine)
            self.initial = self.previous = self._outputs(collectives.sum_over(self.collect(engine).sums))
            return ""
        same_samples = measured_on == self.probe_fingerprint
        if self.initial is not None and same_samples and self._fits(probe):
            return ""
        reason = "is of another size" if same_samples else "was measured on other samples"
        reason = reason if self.initial is not None else "is not in the checkpoint"
        self.initial = self.previous = None
        return f"model_update is left out: the model's output at initialisation {reason}"

    def _fits(self, probe: Probe) -> bool:
        """Whether what was kept has P * T * d numbers, as this model's outputs have."""
        length = of_probe(probe, real_tokens, self.stack)[0].shape[1]
        kept = [tensor.numel() for tensor in (self.initial, self.previous) if tensor is not None]
        return set(kept) == {probe.count * length * self.width}

    def before_probe(self, engine: Engine, probe: Probe) -> None:
        self.probe, self.outputs = probe, list[Tensor]()
        self.hooks.remove()
        for name, module in engine.layers.built_layers():
            if name == self.layer:
                self.hooks.add(module.register_forward_hook(self._listen))

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.outputs.append(output.detach())

    def collect(self, engine: Engine) -> Part:
        """F [P, T, d] of the samples that this rank has seen, and the number of their tokens."""
        self.hooks.remove()
        masks = of_probe(self.probe, real_tokens, self.stack)
        whole = torch.zeros(self.probe.count, masks[0].shape[1], self.width, dtype=torch.float64)
        tokens = 0
        # Where another stage has the layer, nothing was heard.
        for output, real, rows in zip(self.outputs, masks, self.probe.rows, strict=False):
            outputs = output[: len(rows)].cpu().double()
            whole[rows.start : rows.stop] = outputs.masked_fill(~real[..., None], 0.0)
            tokens += int(real.sum())
        self.outputs = []
        return Part(torch.cat([whole.flatten(), torch.tensor([tokens])]), NOTHING)

    @staticmethod
    def _outputs(sums: Tensor) -> Tensor:
        return sums[:-1].float()

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        outputs, tokens = self._outputs(sums), float(sums[-1])
        found = {
            "model_update": {GROUP: [distance(outputs, self.initial, tokens)]},
            "model_update_step": {GROUP: [distance(outputs, self.previous, tokens)]},
        }
        self.previous = outputs
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"probe": self.probe_fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.probe_fingerprint = text(state.get("probe", ""), "probe")

    def tensors(self) -> dict[str, Tensor]:
        kept = {INITIAL: self.initial, PREVIOUS: self.previous}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def load_tensors(self, read: Callable[[str], Tensor | None]) -> None:
        self.initial, self.previous = read(INITIAL), read(PREVIOUS)


def distance(outputs: Tensor, others: Tensor | None, tokens: float) -> float:
    """||F - F'|| / sqrt(tokens) in fp64; NaN where there is nothing to compare."""
    if others is None or not tokens:
        return math.nan
    return float((outputs.double() - others).norm() / math.sqrt(tokens))


def width(spec: ModelSpec) -> int:
    """d, the width of the residual stream."""
    build = next(iter(spec.shared.values()))
    with torch.device("meta"):
        table: Any = build()
    return table.weight.shape[-1]
