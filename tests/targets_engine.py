"""What the engine's and the monitors' tests run in each process of a layout, and the same data for the reference."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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

LAYOUTS = {
    "one": (1, {}),
    "zero1_dp2": (2, {}),
    "zero2_dp2": (2, {"parallel.zero_stage": 2}),
    "zero3_dp2": (2, {"parallel.zero_stage": 3}),
    "pp2": (2, {"parallel.pipeline_stages": 2}),
    "pp2_dp2": (4, {"parallel.pipeline_stages": 2}),
}
"""Processes and changes of one process, of data parallelism under each ZeRO stage, of stages, and of both."""


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
    """(name, shape, start, stop, values) of what this rank owns; gradients in a `before_update` listener only."""

    def values(shard):
        return shard.gradient() if quantity == "gradient" else getattr(shard, quantity)

    owned = engine.owned_shards(replicas=replicas)
    return [(s.name, s.shape, s.start, s.stop, values(s).clone().numpy()) for s in owned]


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


PROBE = 3
"""Samples of the probe: two micro-batches in one process; one a rank, the last half filled, where there are two."""


def probe_batch():
    """The probe's samples as one batch, for a direct computation."""
    return {key: value[:PROBE] for key, value in global_batch(77).items()}


class ProbeSamples:
    """Samples of a validation split, as `collate` reads them."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {key: value[index].numpy() for key, value in global_batch(77).items() if key != "sample_key"}

    def key(self, index):
        return int(global_batch(77)["sample_key"][index])


def sampler(own, chosen):
    """The DepthSignals callback over these signals, with its probe placed."""
    from pretrain.monitors.depth import DepthSignals
    from pretrain.monitors.probe import Probe

    depth = DepthSignals(chosen, Probe(ProbeSamples(), PROBE, 2))
    depth.on_start(SimpleNamespace(engine=own, progress=SimpleNamespace(step=0)))
    return depth


def sampled_step(own, depth, step, lr):
    """One training step on batch `step - 1` that `depth` samples, as the loop would do it; its profiles."""
    trainer = SimpleNamespace(
        engine=own,
        experiment=SimpleNamespace(monitors=SimpleNamespace(interval=1)),
        progress=SimpleNamespace(samples=step * SAMPLES),
        folder=SimpleNamespace(append=lambda name, entry: None),
    )
    depth.on_step_begin(trainer, step)
    own.train_step(own_batches(own, step - 1), lr)
    depth.on_step_end(trainer, SimpleNamespace(step=step))
    return depth.latest[1]


def gradients_of(own, action):
    """(what the action returns, the reduced, unclipped gradients of the update that it makes)."""
    caught = []
    own.before_update.append(lambda: caught.append(shards(own, "gradient")))
    result = action()
    own.before_update.pop()
    return result, caught[-1]


def signals(rank, changes, log, chosen, steps=(2,)):
    """Two training steps of which `steps` (from 1 on) are sampled by the real callback; for the tests of any signal.

    chosen(config, spec): the signals; a function of a module, `every_signal` or a smaller list.

    Returns, on each rank:
        "profiles": {step: figure -> group -> a value a layer}, as layers.jsonl has them;
        "start", "before", "after": shards of the fp32 weights before step 1, before step 2 and after it;
        "gradients", "exp_avg_sq": of step 2: before clipping, and the second moments after it;
        "updates": Adam's steps by then;
        "hooks": hooks that were left on the modules.
    `assembled` makes whole tensors of all ranks' shards. Step s trains on global_batch(s - 1) at the rate LR[s - 1];
    the probe is probe_batch(). targets_equations computes a whole model directly.
    """
    config, spec, own = engine(changes, log)
    hooks, depth = _hooks(own), sampler(own, chosen(config, spec))  # ZeRO-3 has hooks of its own
    found = {"start": shards(own, "weight"), "profiles": {}}

    def train(step):
        if step in steps:
            found["profiles"][step] = sampled_step(own, depth, step, LR[step - 1])
        else:
            own.train_step(own_batches(own, step - 1), LR[step - 1])

    train(1)
    found["before"] = shards(own, "weight")
    _, found["gradients"] = gradients_of(own, lambda: train(2))
    found |= {"after": shards(own, "weight"), "exp_avg_sq": shards(own, "exp_avg_sq")}
    return found | {"updates": own.optimizer_step_count(), "hooks": _hooks(own) - hooks}


def assembled(per_rank):
    """All ranks' shards -> {name: fp64 tensor in its whole shape}."""
    shapes, parts = {}, {}
    for rank in per_rank:
        for name, shape, start, _, values in rank:
            shapes[name] = shape
            parts.setdefault(name, []).append((start, torch.from_numpy(values)))
    return {
        name: torch.cat([values for _, values in sorted(found, key=lambda part: part[0])]).double().view(shapes[name])
        for name, found in parts.items()
    }


def parameters(config, spec):
    """The signals of the parameters, and the norms' inputs beside them."""
    from pretrain.monitors.every_signal import every_signal
    from pretrain.monitors.norm_inputs import NormInputs
    from pretrain.monitors.parameters import ParameterSignals
    from pretrain.monitors.qk_norm_gains import QKNormGains
    from pretrain.monitors.scalars import Scalars

    wanted = NormInputs, ParameterSignals, Scalars, QKNormGains
    return [signal for signal in every_signal(config, spec) if isinstance(signal, wanted)]


def planted(rank, changes, log, chosen, layers=(), rows=()):
    """What the signals see of changes that are known, each made alone and undone, at the learning rate 0.

    layers: whose residual stream is scaled tenfold (post-norm designs only): alpha and all branches of the block, so
    that what enters its norms grows tenfold and what leaves them stays.
    rows: of whose parameters the weights, or the gradients, are scaled tenfold.

    Returns, on each rank, profiles:
        "still": of a step without any change;
        "scaled": {layer: of a step with that layer's stream scaled};
        "gradients": {row: of a step with that row's gradients scaled after their reduction};
        "moved": {row: (with that row's weights scaled as if it were the step's update, with them scaled before it)},
            of weight_norm, update_norm and update_ratio;
    and "weights": shards of all weights.
    """
    config, spec, own = engine(changes, log)
    depth = sampler(own, chosen(config, spec))
    own.train_step(own_batches(own, 0), LR[0])
    found = {"weights": shards(own, "weight"), "still": sampled_step(own, depth, 2, 0.0)}
    found |= {"scaled": {}, "gradients": {}, "moved": {}}
    for layer in layers:
        kept = [(shard.weight, shard.weight.clone()) for shard in own.owned_shards(replicas=True)]
        _scale_residual(own, layer, 10.0)
        found["scaled"][layer] = sampled_step(own, depth, 2, 0.0)
        _scale_residual(own, layer, 0.1)
        for weight, before in kept:
            weight.copy_(before)
        own.publish_weights()
    for row in rows:
        found["gradients"][row] = _with_tenfold_gradients(own, sampler(own, chosen(config, spec)), row)
        found["moved"][row] = _with_tenfold_weights(own, spec, row)
    return found


def _with_tenfold_gradients(own, depth, row):
    shards_of = own.owned_shards

    def scaled(replicas=False):
        for shard in shards_of(replicas):
            gradient = shard.gradient
            tenfold = replace(shard, gradient=lambda gradient=gradient: 10 * gradient())
            yield tenfold if row_of(shard.name) == row else shard

    own.owned_shards = scaled
    profiles = sampled_step(own, depth, 2, 0.0)
    own.owned_shards = shards_of
    return profiles


def _with_tenfold_weights(own, spec, row):
    """Profiles of the scaling taken for a step, and of the weights so scaled."""
    from pretrain.monitors.depth import gather
    from pretrain.monitors.parameters import ParameterSignals
    from pretrain.monitors.update_norm import UpdateNorm
    from pretrain.monitors.update_ratio import UpdateRatio
    from pretrain.monitors.weight_norm import WeightNorm

    signal = ParameterSignals(spec, [WeightNorm(), UpdateNorm(), UpdateRatio()])  # no step, so no gradient
    weights = [shard.weight for shard in own.owned_shards() if row_of(shard.name) == row]
    kept, profiles = [weight.clone() for weight in weights], []
    for factor in (10, 1):
        signal.before_step(own)
        for weight in weights:
            weight.mul_(factor)
        profiles.append(gather([signal], [signal.collect(own)]))
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    return profiles


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
