"""The model card (README.md) of an exported folder."""

from __future__ import annotations

from typing import Any

from pretrain import __version__
from pretrain.hf.hosts import Host
from pretrain.hf.trained import TrainedModel
from pretrain.hf.verify import Verification

PAPERS = {
    "deepnorm": ("DeepNet: Scaling Transformers to 1,000 Layers", "2203.00555"),
    "post_ln": ("Attention Is All You Need", "1706.03762"),
}
FIGURES = {
    "validation_loss": "validation loss (nats a token)",
    "unigram_entropy": "unigram entropy of the same targets",
    "loss": "training loss of the last step",
    "tokens": "tokens seen",
    "seconds": "seconds of training",
}

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {pipeline_tag}
license: {license}
tags:
- {block}
- kilolayer
---

# {name}

A {encoder_layers} + {decoder_layers} layer encoder-decoder with `{block}` blocks, trained with kilolayer {version} and
converted to the native `{host}` class: it loads without remote code.{paper}

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")
inputs = tokenizer("def add(a, b):\\n    return <extra_id_0>\\n", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```

The model restores spans of text that `<extra_id_0>`, `<extra_id_1>`, ... stand for; its output lists each sentinel
with the text it stands for.

## Architecture

| | |
|---|---|
{architecture}

## Training

| | |
|---|---|
{training}

## Conversion

{conversion}
"""


def model_card(trained: TrainedModel, host: Host, license_name: str, verification: Verification | None) -> str:
    """README.md: metadata for the Hub, use, architecture, training facts, exactness of the conversion."""
    model = trained.experiment.model
    block = model.block.kind  # type: ignore[attr-defined]
    title, number = PAPERS.get(block, ("", ""))
    return TEMPLATE.format(
        pipeline_tag=host.pipeline_tag,
        license=license_name,
        block=block,
        name=trained.experiment.name,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        version=__version__,
        host=host.model_class.__name__,
        auto=host.auto_class.__name__,
        paper=f"\nBlock design: [{title}](https://arxiv.org/abs/{number})." if title else "",
        architecture=_rows(_architecture(trained)),
        training=_rows(_training(trained)),
        conversion=_conversion(verification),
    )


def _rows(facts: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())


def _architecture(trained: TrainedModel) -> dict[str, Any]:
    model, shape = trained.experiment.model, trained.architecture
    parameters = sum(parameter.numel() for parameter in shape.skeleton.parameters())
    return {
        "parameters": f"{parameters:,}",
        "layers": f"{model.encoder_layers} encoder, {model.decoder_layers} decoder",
        "hidden size, heads, FFN": f"{model.hidden_size}, {model.num_heads}, {model.ffn_size} ({model.activation})",
        "vocabulary": f"{shape.vocab_size} rows, {trained.tokenizer.vocab_size} pieces (SentencePiece)",
        "lengths": f"{shape.source_length} source, {shape.target_length} target tokens",
        "tied embeddings": "yes" if model.tie_embeddings else "no",
    }


def _training(trained: TrainedModel) -> dict[str, Any]:
    experiment, facts = trained.experiment, trained.training_facts()
    rows: dict[str, Any] = {
        "steps": f"{trained.checkpoint.step} of {experiment.train.max_steps}",
        "batch": f"{experiment.batch.global_batch_size} samples",
        "objective": experiment.objective.kind,  # type: ignore[attr-defined]
        "optimizer": f"AdamW, peak learning rate {experiment.optimizer.lr:g}, betas {experiment.optimizer.betas}",
        "precision": experiment.train.precision,
        "seed": experiment.train.seed,
    }
    for key, label in FIGURES.items():
        if isinstance(value := facts.get(key), int | float):
            rows[label] = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return rows


def _conversion(verification: Verification | None) -> str:
    if verification is None:
        return "Not verified against the trained model."
    lines = "\n".join(f"    {line}" for line in verification.lines())
    return f"Verified on real text against the training engine's own modules:\n\n{lines}"
