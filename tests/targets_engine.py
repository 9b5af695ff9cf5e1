"""What the engine's and the monitors' tests run in each process of a layout, and the same data for the reference."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pretrain.config.schema import Experiment

VOCABULARY, SOURCE, TARGET, SAMPLES, STEPS = 160, 12, 10, 8, 5
LR = (1e-3, 2e-3, 1.5e-3, 3e-3, 1e-3)
MODEL = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_size": 32,
    "dropout": 0.1,
}


def experiment(changes):
    """A checked-looking experiment; `changes`: dotted key -> value."""
    values = {
        "model": dict(MODEL),
        "batch": {"global_batch_size": SAMPLES, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-3, "betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.1, "clip_norm": 1.3},
        "train": {"seed": 3},
        "parallel": {},
        "data": {},
    }
    for key, value in changes.items():
        section, name = key.split(".")
        values[section][name] = value
    return Experiment.model_validate(values)


def model_spec(config):
    from pretrain.models.encoder_decoder import encoder_decoder

    multiple = config.data.pad_vocab_to
    return encoder_decoder(config.model, -(-VOCABULARY // multiple) * multiple, SOURCE, TARGET)


def global_batch(step):
    """Ragged in source and labels: sample i of a step has its own lengths; one has no target at all."""
    generator = torch.Generator().manual_seed(100 + step)
    source = torch.randint(2, SOURCE + 1, (SAMPLES, 1), generator=generator)
    target = torch.randint(1, TARGET + 1, (SAMPLES, 1), generator=generator)
    target[step % SAMPLES] = 0
    labels = torch.randint(0, VOCABULARY, (SAMPLES, TARGET), generator=generator)
    return {
        "input_ids": torch.randint(0, VOCABULARY, (SAMPLES, SOURCE), generator=generator),
        "attention_mask": (torch.arange(SOURCE) < source).long(),
        "decoder_input_ids": torch.randint(0, VOCABULARY, (SAMPLES, TARGET), generator=generator),
        "labels": labels.masked_fill(torch.arange(TARGET) >= target, -100),
        "sample_key": torch.randint(0, 2**62, (SAMPLES,), generator=generator),
    }


def micro_batches(batch, rank=0, size=1, micro=2):
    """The contiguous slice of data-parallel rank `rank`, cut."""
    per_rank = SAMPLES // size
    starts = range(rank * per_rank, (rank + 1) * per_rank, micro)
    return [{key: value[a : a + micro] for key, value in batch.items()} for a in starts]


def engine(changes, log):
    """Start this process's engine."""
    from pretrain.config.checks import check
    from pretrain.config.deepspeed import deepspeed_config
    from pretrain.launch.environment import rank_environment
    from pretrain.parallel import process_group
    from pretrain.parallel.build import build_engine

    config, environment = experiment(changes), rank_environment(os.environ)
    plan = check(config, environment.world_size, "cpu")
    process_group.start(environment, Path(log) / f"rank_{environment.rank}.log")
    spec = model_spec(config)
    with process_group.quiet(Path(log) / f"rank_{environment.rank}.log"):
        return config, spec, build_engine(config, spec, deepspeed_config(config, plan))


def own_batches(engine, step):
    batches = micro_batches(global_batch(step), engine.data_parallel_rank, engine.data_parallel_size)
    return batches if engine.needs_data else []


def shards(engine, quantity, replicas=False):
    return [
        (s.name, s.shape, s.start, s.stop, getattr(s, quantity).clone().numpy())
        for s in engine.owned_shards(replicas=replicas)
    ]


def evaluated(engine, batches=None):
    mine = micro_batches(global_batch(77), engine.data_parallel_rank, engine.data_parallel_size)
    return engine.evaluate(mine[:batches])


def row_of(name):
    parts = name.split(".")
    return ".".join(parts[:3] if "layers" in parts else parts[:2] if parts[0] in ("encoder", "decoder") else parts[:1])


def train_and_probe(rank, changes, log):
    """Five steps with gradients caught; then what writing into shards does."""
    *_, own = engine(changes, log)
    found = {"replicas": shards(own, "weight", replicas=True), "start": shards(own, "weight"), "steps": []}
    found["before"] = evaluated(own)
    caught = []
    own.before_update.append(
        lambda: caught.append(
            [(s.name, s.shape, s.start, s.stop, s.gradient().clone().numpy()) for s in own.owned_shards()]
        )
    )
    for step in range(STEPS):
        result = own.train_step(own_batches(own, step), LR[step])
        found["steps"].append(
            (result.loss, result.target_tokens, result.grad_norm, result.grad_norm_clipped, result.skipped)
        )
    found["resident"] = sum(parameter.numel() for parameter in own.layers.parameters())
    found["gradients"], found["updates"] = caught, own.optimizer_step_count()
    found |= {q: shards(own, q) for q in ("weight", "exp_avg", "exp_avg_sq")}
    found["after"] = evaluated(own)
    found["needs_data"], found["place"] = own.needs_data, (own.stage, own.num_stages, own.data_parallel_rank)

    found["changed"] = _evaluated_with_change(own, "decoder.layers.1", replicas=False)
    found["restored"] = evaluated(own)
    found["not finite"] = _step_with_infinity(own, "decoder.layers.1")
    return found


def _step_with_infinity(own, row):
    """(skipped, norm, updates, whether weights and moments stayed) of a step with an infinite weight."""
    kept = [(s.weight, s.weight.clone()) for s in own.owned_shards(replicas=True) if row_of(s.name) == row]
    for weight, _ in kept:
        weight.fill_(float("inf"))
    own.publish_weights()
    before = [(s.weight.clone(), s.exp_avg.clone(), s.exp_avg_sq.clone()) for s in own.owned_shards()]
    result = own.train_step(own_batches(own, 0), 1e-3)
    after = [(s.weight, s.exp_avg, s.exp_avg_sq) for s in own.owned_shards()]
    same = all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))
    return result.skipped, result.grad_norm, own.optimizer_step_count(), same


def moved_by(start, stop):
    """What is added to elements start..stop-1 of each flattened parameter."""
    return 0.2 * torch.sin(torch.arange(start, stop, dtype=torch.float32) * 1.7 + 1)


def _evaluated_with_change(own, row, batches=None, replicas=True):
    """What `evaluated` gives with all weights of a row of the model moved through the shards; None if nobody did."""
    from pretrain.parallel import collectives

    kept = []
    for shard in own.owned_shards(replicas=replicas):
        if row_of(shard.name) == row:
            kept.append((shard.weight, shard.weight.clone()))
            shard.weight.add_(moved_by(shard.start, shard.stop))
    own.publish_weights()
    found = evaluated(own, batches)
    for weight, before in kept:
        weight.copy_(before)
    own.publish_weights()
    return found if collectives.agree_any(bool(kept)) else None


def _sampled_step(own, spec, lr):
    """Rows of both signals over one step on the second batch."""
    from pretrain.monitors.norm_inputs import NormInputs
    from pretrain.monitors.update_norm import UpdateNorm

    chosen = [NormInputs(spec), UpdateNorm(spec)]
    for signal in chosen:
        signal.before_step(own)
    own.train_step(own_batches(own, 1), lr)
    return collected(own, chosen)


def collected(own, chosen):
    from pretrain.monitors.depth import gather

    return gather(chosen, [signal.collect(own) for signal in chosen])


def signals(rank, changes, log, planted=(), moved=()):
    """One sampled step (the second): both signals' rows, and what a direct computation needs.

    planted: layers whose residual stream is then scaled tenfold, each alone, at rate 0 (post-norm designs only).
    moved: rows whose weights are then scaled tenfold, each alone, between an update norm's `before_step` and `collect`.
    """
    from pretrain.monitors.update_norm import UpdateNorm

    _, spec, own = engine(changes, log)
    hooks = _hooks(own)  # ZeRO-3 has its own
    own.train_step(own_batches(own, 0), LR[0])
    found = {"before": shards(own, "weight"), "rows": _sampled_step(own, spec, LR[1]), "after": shards(own, "weight")}
    found["hooks"] = _hooks(own) - hooks
    if planted:
        found["still"] = _sampled_step(own, spec, 0.0)
    found["planted"] = {}
    for layer in planted:
        kept = [(shard.weight, shard.weight.clone()) for shard in own.owned_shards(replicas=True)]
        _scale_residual(own, layer, 10.0)
        found["planted"][layer] = _sampled_step(own, spec, 0.0)
        _scale_residual(own, layer, 0.1)
        for weight, before in kept:
            weight.copy_(before)
        own.publish_weights()
    found["moved"] = {}
    for row in moved:
        signal = UpdateNorm(spec)
        signal.before_step(own)
        weights = [shard.weight for shard in own.owned_shards() if row_of(shard.name) == row]
        for weight in weights:
            weight.mul_(10)
        found["moved"][row] = collected(own, [signal])["update_norm"]
        for weight in weights:
            weight.div_(10)
    return found


def _hooks(own):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in own.layers.modules())


def _scale_residual(own, layer, factor):
    """alpha and all branches of one block times ten: the norms' inputs grow tenfold, their outputs stay."""
    for name, module in own.layers.built_layers():
        if name == layer:
            module.alpha *= factor
    for shard in own.owned_shards(replicas=True):
        if shard.name.startswith(f"{layer}.") and ("out_proj" in shard.name or "fc2" in shard.name):
            shard.weight.mul_(factor)
    own.publish_weights()


def collective_calls(rank):
    """Each collective once; what it returned on this rank, and what it left of its argument."""
    from pretrain.launch.environment import rank_environment
    from pretrain.parallel import collectives, process_group

    process_group.start(rank_environment(os.environ), Path(os.devnull))
    mine = torch.tensor([1.0 + rank, 10.0 * rank], dtype=torch.float64)
    summed = collectives.sum_over(mine)
    largest = torch.tensor([rank, -rank])
    return {
        "sum": summed.tolist(),
        "argument after sum": mine.tolist(),
        "max": collectives.max_over(largest).tolist(),
        "argument after max": largest.tolist(),
        "any": [collectives.agree_any(rank == 1), collectives.agree_any(False), collectives.agree_any(True)],
        "rows": collectives.gather_rows(torch.tensor([2**60 + rank, -rank])).tolist(),
        "texts": [
            collectives.share_text(f"naïve {rank} ∑", source=0),
            collectives.share_text("x" * rank * 70_000, source=1),
            collectives.share_text("", source=1),
        ],
        "identity": (collectives.rank(), collectives.world_size(), collectives.is_first()),
    }


def losses_by_layer(rank, changes, log):
    """{row: loss of the evaluation with that row of the model moved}, row None: with nothing moved; and its layers."""
    _, spec, own = engine(changes, log)
    rows = dict.fromkeys([None, *spec.shared, *(layer.name for layer in spec.layers)])
    held = [name for name, _ in own.layers.built_layers()]
    found = {row: _evaluated_with_change(own, row, 1) if row else evaluated(own, 1) for row in rows}
    return {row: evaluation and evaluation[0] for row, evaluation in found.items()}, held
