"""Ten steps of every family and block, several after one another in the same processes, and losses to recompute."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pretrain.config.schema import Experiment

OBJECTIVES = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "span_denoising"}
VOCABULARY, LENGTH, SAMPLES, STEPS, RECOMPUTED_STEPS = 96, 10, 8, 10, 2


def cases():
    """(name, model section, segmented): each block in each family where it has a meaning; packed documents once."""
    from pretrain.blocks.registry import BLOCKS

    for kind in BLOCKS.kinds():
        for family in sorted(BLOCKS[kind].families):
            yield f"{family}/{kind}", {"family": family, "block": {"kind": kind}}, False
    for family in ("decoder", "encoder", "encoder_decoder"):
        yield f"{family}/documents", {"family": family, "block": {"kind": "pre_ln"}}, True
    yield "decoder/sas documents", {"family": "decoder", "block": {"kind": "sas"}}, True


def recomputed_cases():
    """Each block as a decoder, packed documents too."""
    return [case for case in cases() if case[1]["family"] == "decoder"]


# Without dropout, and with weights that one cannot miss.
LOSS = {"label_smoothing": 0.1, "z_loss": 0.3}
LOSS_MODEL = {"family": "decoder", "block": {"kind": "pre_ln"}, "dropout": 0.0}


def experiment(model, stages, loss=None, zero=1, every=0):
    """zero: parallel.zero_stage; every: train.activation_checkpointing."""
    family = model["family"]
    depths = {f"{stack}_layers": 2 for stack in ("encoder", "decoder") if stack in family}
    depths = dict.fromkeys(depths, 4) if len(depths) == 1 else depths
    return Experiment.model_validate(
        {
            "model": {"hidden_size": 16, "num_heads": 2, "ffn_size": 32, "dropout": 0.1, **depths, **model},
            "batch": {"global_batch_size": SAMPLES, "micro_batch_size": 2},
            "optimizer": {"lr": 2e-3, "betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.1, "clip_norm": 1.3},
            "parallel": {"pipeline_stages": stages, "zero_stage": zero},
            "objective": {"kind": OBJECTIVES[family]},
            "loss": loss or {"label_smoothing": 0.1, "z_loss": 1e-3},
            "train": {"seed": 3, "activation_checkpointing": every},
        }
    )


def spec_of(config, segmented=False):
    from pretrain.models.registry import FAMILIES

    lengths = [LENGTH if stack in config.model.family else 0 for stack in ("encoder", "decoder")]
    return FAMILIES[config.model.family](config.model, VOCABULARY, *lengths, segmented=segmented)


def global_batch(step, segmented=False, prefixed=False):
    """Ragged samples; where segmented, two documents in each; where prefixed too, each with a prefix of two."""
    generator = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(0, VOCABULARY, (3, SAMPLES, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (SAMPLES, 1), generator=generator)
    real = torch.arange(LENGTH) < lengths
    mask = real.long()
    if segmented:
        mask[:, 3:] *= 2
    if prefixed:
        mask[:, [0, 1, 3, 4]] *= -1
    return {
        "input_ids": ids[0],
        "attention_mask": mask,
        "decoder_input_ids": ids[1],
        "decoder_attention_mask": mask,
        "labels": ids[2].masked_fill(~real, -100),
        "sample_key": torch.randint(0, 2**62, (SAMPLES,), generator=generator),
    }


class Layout:
    """This process's place in a layout, in which engines are built one after another."""

    def __init__(self, log):
        from pretrain.launch.environment import rank_environment
        from pretrain.parallel import process_group

        torch.set_num_threads(1)
        self.environment = rank_environment(os.environ)
        self.file = Path(log) / f"rank_{self.environment.rank}.log"
        process_group.start(self.environment, self.file)

    def build(self, config, segmented=False):
        from pretrain.config.checks import check
        from pretrain.config.deepspeed import deepspeed_config
        from pretrain.parallel import process_group
        from pretrain.parallel.build import build_engine

        plan = check(config, self.environment.world_size, "cpu")
        with process_group.quiet(self.file):
            return build_engine(config, spec_of(config, segmented), deepspeed_config(config, plan))

    def train(self, config, segmented, steps):
        """[(loss, gradient norm), ...] of the first steps."""
        engine, prefixed, found = self.build(config, segmented), segmented and config.model.family == "decoder", []
        for step in range(steps):
            micro = micro_batches(engine, global_batch(step, segmented, prefixed))
            result = engine.train_step(micro, config.optimizer.lr)
            found.append((result.loss, result.grad_norm))
        return found

    def end(self):
        from pretrain.parallel import process_group

        process_group.end()


def run_cases(rank, stages, log):
    """On this layout {name: [(loss, gradient norm), ...]} of all cases, and `losses`."""
    layout = Layout(log)
    results = {name: layout.train(experiment(model, stages), segmented, STEPS) for name, model, segmented in cases()}
    found = losses(layout.build(experiment(LOSS_MODEL, stages, LOSS)))
    layout.end()
    return results, found


def run_recomputed(rank, stages, log, zero):
    """{name: [(loss, gradient norm), ...]} of two steps of `recomputed_cases`; zero: parallel.zero_stage."""
    layout = Layout(log)
    results = {
        name: layout.train(experiment(model, stages, zero=zero, every=1), segmented, RECOMPUTED_STEPS)
        for name, model, segmented in recomputed_cases()
    }
    layout.end()
    return results


def micro_batches(engine, batch):
    micro = [{key: value[a : a + 2] for key, value in batch.items()} for a in range(0, SAMPLES, 2)]
    return micro if engine.needs_data else []


def losses(engine):
    """(evaluation's mean, the first step's loss, evaluation's mean, its count) on batch 0; the rate is 0."""
    micro = micro_batches(engine, global_batch(0))
    before, count = engine.evaluate(micro)
    trained = engine.train_step(micro, 0.0).loss
    after, _ = engine.evaluate(micro)
    return before / count, trained, after / count, count
