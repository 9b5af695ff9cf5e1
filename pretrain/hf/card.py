"""The model card (README.md) of an exported folder."""

from __future__ import annotations

from typing import Any

from pretrain import __version__
from pretrain.hf.completers import COMPLETERS
from pretrain.hf.hosts import Host
from pretrain.hf.trained import TrainedModel
from pretrain.hf.verify import Verification

DEEPNET = ("DeepNet: Scaling Transformers to 1,000 Layers", "2203.00555")
PAPERS = {
    "deepnorm": DEEPNET,
    "post_ln_init": DEEPNET,
    "deepnorm_sqrt": ("GLM-130B: An Open Bilingual Pre-trained Model", "2210.02414"),
    "post_ln": ("Attention Is All You Need", "1706.03762"),
    "pre_ln": ("On Layer Normalization in the Transformer Architecture", "2002.04745"),
    "lns": ("The Curse of Depth in Large Language Models", "2502.05795"),
}
FAMILIES = {
    "decoder": "{decoder_layers} layer decoder",
    "encoder": "{encoder_layers} layer encoder",
    "encoder_decoder": "{encoder_layers} + {decoder_layers} layer encoder-decoder",
}
FIGURES = {
    "validation_loss": "validation loss (nats a token)",
    "source_use": "source use (loss with exchanged sources, minus validation loss)",
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

A {family} with `{block}` blocks, trained with kilolayer {version} and
converted to the native `{host}` class: it loads without remote code.{paper}

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")
{example}
```

{purpose}

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
    completer = COMPLETERS.get(trained.experiment.objective.kind, COMPLETERS[host.objective])  # type: ignore[attr-defined]
    title, number = PAPERS.get(block, ("", ""))
    return TEMPLATE.format(
        pipeline_tag=host.pipeline_tag,
        license=license_name,
        block=block,
        name=trained.experiment.name,
        family=FAMILIES[model.family].format(**model.model_dump()),
        example=completer.example.format(prompt=completer.prompt),
        purpose=completer.purpose,
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


def _sides(**numbers: int) -> str:
    """`3 encoder, 2 decoder`, or the one number that is not zero."""
    there = {name: number for name, number in numbers.items() if number}
    return str(*there.values()) if len(there) == 1 else ", ".join(f"{number} {name}" for name, number in there.items())


def _architecture(trained: TrainedModel) -> dict[str, Any]:
    model, shape = trained.experiment.model, trained.architecture
    parameters = sum(parameter.numel() for parameter in shape.skeleton.parameters())
    return {
        "parameters": f"{parameters:,}",
        "layers": _sides(encoder=model.encoder_layers, decoder=model.decoder_layers),
        "hidden size, heads, FFN": f"{model.hidden_size}, {model.num_heads}, {model.ffn_size} ({model.activation})",
        "vocabulary": f"{shape.vocab_size} rows, {trained.tokenizer.vocab_size} pieces (SentencePiece)",
        "lengths": f"{_sides(source=shape.source_length, target=shape.target_length)} tokens",
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
