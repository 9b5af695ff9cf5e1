"""The encoder's head computes logits of the labelled positions alone, where it is given labels."""

import torch

from pretrain.config.schema import Experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES


def test_they_are_the_rows_of_all_logits():
    section = Experiment.model_validate(
        {"model": {"family": "encoder", "encoder_layers": 2, "hidden_size": 16, "num_heads": 2, "ffn_size": 32}}
    ).model
    spec = FAMILIES["encoder"](section, 40, 6, 0)
    layers = LayerList(spec, seed=1).double()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 40, (3, 6), generator=generator)
    labels[0], labels[1, 2:] = -100, -100
    batch = {
        "input_ids": torch.randint(0, 40, (3, 6), generator=generator),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "sample_key": torch.arange(3),
    }
    (whole,) = layers(spec.state(batch))
    (some,) = layers(spec.state(batch | {"labels": labels}))
    assert whole.shape == (3, 6, 40)
    assert some.shape == (8, 40)
    torch.testing.assert_close(some, whole[labels != -100], rtol=1e-12, atol=1e-14)
    (none,) = layers(spec.state(batch | {"labels": torch.full_like(labels, -100)}))
    assert none.shape == (0, 40)
