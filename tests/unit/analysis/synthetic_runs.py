"""Run folders as a training run writes them, made up but plausible."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "name": "demo",
    "model": {
        "family": "encoder_decoder",
        "encoder_layers": 6,
        "decoder_layers": 8,
        "hidden_size": 64,
        "num_heads": 2,
        "ffn_size": 128,
        "activation": "relu",
        "block": {"kind": "deepnorm"},
    },
    "optimizer": {"lr": 0.002, "betas": [0.9, 0.98]},
    "train": {"max_steps": 20},
}


def metric(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 2400 * step,
        "samples": 16 * step,
        "loss": 8.0 - 0.1 * step,
        "lr": 1e-4 * step,
        "grad_norm": 2.0,
        "grad_norm_clipped": 1.0,
        "tokens_per_second": 3000.0,
        "mfu": None,
        "step_seconds": 0.5,
        "data_seconds": 0.01,
    } | changes


def signals(encoder: int, decoder: int, value: float = 1.0) -> dict[str, Any]:
    """One sample of the seven rows; layer i of every row is value * (1 + i / 10)."""
    rows = {n: [round(value * (1 + i / 10), 6) for i in range(n)] for n in (encoder, decoder)}
    stacks = {"encoder": rows[encoder], "decoder": rows[decoder]}
    branches = ("encoder.self_attention", "encoder.ffn", "decoder.self_attention", "decoder.cross_attention")
    return {
        "norm_input_rms": {name: stacks[name.split(".")[0]] for name in (*branches, "decoder.ffn")},
        "update_norm": {**stacks, "embeddings": [3.0 * value]},
    }


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(folder: Path, steps: int = 20, every: int = 5, config: dict[str, Any] | None = None) -> Path:
    """A finished run of `steps` steps with depth signals at step 1 and at every `every`-th."""
    folder.mkdir(parents=True)
    config = CONFIG if config is None else config
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    metrics = [metric(step) for step in range(1, steps + 1)]
    write_lines(folder / "metrics.jsonl", [*metrics, {"step": steps, "validation_loss": 5.25, "source_use": 1.25}])
    model = config["model"]
    sampled = sorted({1, *range(every, steps + 1, every)})
    layers = [
        {
            "step": step,
            "samples": 16 * step,
            "signals": signals(model["encoder_layers"], model["decoder_layers"], 1 + step / 100),
        }
        for step in sampled
    ]
    write_lines(folder / "layers.jsonl", layers)
    events = [
        {"time": "2026-03-01T10:00:00Z", "step": 0, "event": "start"},
        {"time": "2026-03-01T10:05:00Z", "step": steps // 2, "event": "save", "seconds": 0.4},
        {"time": "2026-03-01T10:09:00Z", "step": steps, "event": "end", "reason": "max_steps reached"},
    ]
    write_lines(folder / "events.jsonl", events)
    summary = {"validation_loss": 5.25, "unigram_entropy": 5.72, "tokens_per_second": 2950.0, "seconds": 11.5}
    (folder / "summary.json").write_text(json.dumps(summary | {"step": steps, "parameters": 4_812_032}))
    return folder


LAYER_PARTS = ("", ".self_attention", ".ffn", ".norms", ".gains")
PARAMETER_FIGURES = ("gradient_norm", "weight_norm", "update_norm", "update_ratio", "adam_rms")
NORM_FIGURES = ("norm_input_rms", "norm_input_growth", "norm_input_gradient")
ATTENTION_FIGURES = (
    "attention_logit_max",
    "attention_logits_above_100",
    "attention_entropy_mean",
    "attention_entropy_min",
)
SMOOTHING_FIGURES = ("token_cosine", "high_frequency_ratio", "effective_rank")
EDGES = ("token_embedding", "encoder.embeddings", "decoder.embeddings", "decoder.final_norm", "output_projection")


def every_figure(encoder: int, decoder: int, heads: int) -> dict[tuple[str, str], tuple[int, ...]]:
    """(figure, group) -> shape of a sample, of all figures that a run of an encoder-decoder may log."""
    stacks = {"encoder": encoder, "decoder": decoder}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for stack, layers in stacks.items():
        attentions = [f"{stack}.self_attention", *(["decoder.cross_attention"] if stack == "decoder" else [])]
        parts = [stack, *attentions, *(stack + part for part in LAYER_PARTS[2:])]
        shapes |= {(figure, group): (layers,) for figure in PARAMETER_FIGURES for group in parts}
        shapes |= {(figure, group): (layers,) for figure in NORM_FIGURES for group in [*attentions, f"{stack}.ffn"]}
        shapes |= {(figure, group): (layers, heads) for figure in ATTENTION_FIGURES for group in attentions}
        shapes |= {(figure, stack): (layers,) for figure in SMOOTHING_FIGURES}
        shapes |= {(f"scalar_{name}", attentions[0]): (layers, heads) for name in ("alpha", "beta", "gamma")}
        shapes["scalar_gain", stack] = (layers,)
        shapes |= {("qk_norm_gain_max", group): (layers,) for group in attentions}
    shapes |= {(figure, edge): (1,) for figure in PARAMETER_FIGURES for edge in EDGES}
    updates = ("model_update", "model_update_step", "model_update_bound")
    return shapes | {(figure, "model"): (1,) for figure in updates}


def embedded(page: Path) -> dict[str, Any]:
    """The data inside a report, read as strictly as a browser does."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(found[1], parse_constant=refuse)
