"""Every layout's shards, gradients, updates, losses and evaluations against plain PyTorch over the same modules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import targets_engine as targets
import targets_equations as equations
import torch
from harness import run_group

from pretrain.models.layer_list import LayerList
from pretrain.objectives.cross_entropy import cross_entropy_sum
from pretrain.parallel.build import stage_table

torch.set_num_threads(1)
ODD = {"model.hidden_size": 15, "model.num_heads": 3, "model.ffn_size": 31, "optimizer.clip_norm": 1.2}
"""Sizes that two ranks cannot divide evenly."""
LAYOUTS = {
    "one": (1, {}),
    "zero1_dp2": (2, {}),
    "zero2_dp2": (2, {"parallel.zero_stage": 2, "optimizer.clip_norm": 0.0, "optimizer.no_decay": []}),
    "zero0_dp2": (2, {**ODD, "parallel.zero_stage": 0, "train.activation_checkpointing": 2}),
    "zero3_untied_recomputed_dp2": (
        2,
        {
            **ODD,
            "parallel.zero_stage": 3,
            "train.activation_checkpointing": 3,
            "model.tie_embeddings": False,
        },
    ),
    "offload_dp2": (2, {"parallel.offload_optimizer": True, "train.activation_checkpointing": 1}),
    "offload_zero3_recomputed_dp2": (
        2,
        {"parallel.zero_stage": 3, "parallel.offload_optimizer": True, "train.activation_checkpointing": 2},
    ),
    "pp2": (2, {"parallel.pipeline_stages": 2}),
    "pp2_dp2": (4, {"parallel.pipeline_stages": 2}),
    "bf16_dp2": (2, {"train.precision": "bf16"}),
    "bf16_zero2_dp2": (2, {"train.precision": "bf16", "parallel.zero_stage": 2}),
    "bf16_zero3_dp2": (2, {"train.precision": "bf16", "parallel.zero_stage": 3}),
    "bf16_offload_zero2_dp2": (
        2,
        {"train.precision": "bf16", "parallel.zero_stage": 2, "parallel.offload_optimizer": True},
    ),
    "bf16_pp2": (2, {"train.precision": "bf16", "parallel.pipeline_stages": 2}),
    "pre_ln_untied_pp2": (
        2,
        {
            "parallel.pipeline_stages": 2,
            "model.block": {"kind": "pre_ln"},
            "model.tie_embeddings": False,
            "optimizer.clip_norm": 1.93,
            "model.dropout": 0.0,
            "optimizer.no_decay": ["norms", "biases", "gains", "embeddings"],
        },
    ),
}
FP32 = [name for name in LAYOUTS if not name.startswith("bf16")]
BF16 = [name for name in LAYOUTS if name.startswith("bf16")]


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request, tmp_path_factory):
    """(name, experiment, what each rank found)"""
    processes, changes = LAYOUTS[request.param]
    log = str(tmp_path_factory.mktemp("log"))
    return request.param, targets.experiment(changes), run_group(targets.train_and_probe, processes, changes, log)


def only(run, names):
    if run[0] not in names:
        pytest.skip("for other layouts")


def assembled(per_rank):
    """Shards of all ranks -> {name: whole tensor}; every element once, or an AssertionError."""
    whole, filled = {}, {}
    for shards in per_rank:
        for name, shape, start, stop, values in shards:
            numel = math.prod(shape)
            whole.setdefault(name, np.full(numel, np.nan, dtype=np.float32))
            counts = filled.setdefault(name, np.zeros(numel, dtype=int))
            assert whole[name].size == numel
            assert 0 <= start < stop <= numel
            assert values.shape == (stop - start,), name
            assert values.dtype == np.float32
            whole[name][start:stop] = values
            counts[start:stop] += 1
    for name, counts in filled.items():
        assert (counts == 1).all(), f"{name}: elements owned {sorted(set(counts.tolist()))} times"
    shapes = {name: shape for shards in per_rank for name, shape, *_ in shards}
    return {name: torch.from_numpy(values).view(shapes[name]) for name, values in whole.items()}


def reference(config, dtype=None):
    model = LayerList(targets.model_spec(config), seed=config.train.seed)
    return model.to(dtype) if dtype else model


def full_loss(model, config, step):
    """Sum over the targets of the whole global batch / their count, in one forward."""
    batch = targets.global_batch(step)
    (logits,) = model(targets.model_spec(config).state(batch))
    return cross_entropy_sum(logits, batch["labels"]) / int((batch["labels"] != -100).sum())


def relative(found, expected):
    """Greatest difference over all tensors, relative to the whole gradient's norm."""
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert found.keys() == expected.keys()
    return max(float((found[name].double() - expected[name].double()).norm()) for name in expected) / norm


class TestShards:
    def test_they_tile_every_parameter_once(self, run):
        _, config, ranks = run
        weights = assembled([rank["start"] for rank in ranks])
        expected = reference(config).state_dict()
        assert weights.keys() == expected.keys()
        for name, value in expected.items():  # in bf16 too: the masters are not those of the rounded model
            assert torch.equal(weights[name], value), name

    def test_moments_tile_too(self, run):
        _, config, ranks = run
        for quantity in ("exp_avg", "exp_avg_sq"):
            moments = assembled([rank[quantity] for rank in ranks])
            assert moments.keys() == reference(config).state_dict().keys()
            assert all(float(m.abs().max()) > 0 for m in moments.values())

    def test_replicas_are_the_tied_copies(self, run):
        """The second stage has a copy of the embedding where it reads it: for the head, or the decoder's input."""
        _, config, ranks = run
        if config.parallel.zero_stage == 0:
            pytest.skip("there all is replicated")
        table = stage_table(config, targets.model_spec(config))
        read = {layer.tie_key for layer in targets.model_spec(config).layers[table[-1].start :]}
        copied = len(table) == 2 and "token_embedding" in read
        assert copied or config.parallel.pipeline_stages == 1 or not config.model.tie_embeddings
        more = [[s for s in rank["replicas"] if s[:4] not in [o[:4] for o in rank["start"]]] for rank in ranks]
        assert {s[0] for shards in more for s in shards} == ({"token_embedding.weight"} if copied else set())
        if copied:
            (copy,) = assembled(more).values()
            assert torch.equal(copy, assembled([rank["start"] for rank in ranks])["token_embedding.weight"])

    def test_without_zero_everything_is_a_replica_and_each_rank_owns_an_equal_share(self, run):
        only(run, ["zero0_dp2"])
        _, config, ranks = run
        expected = reference(config).state_dict()
        owned = [sum(stop - start for _, _, start, stop, _ in rank["start"]) for rank in ranks]
        assert max(owned) - min(owned) <= 1
        for rank in ranks:
            assert {name: torch.from_numpy(w).view(shape) for name, shape, *_, w in rank["replicas"]}.keys() == (
                expected.keys()
            )
            assert assembled([rank["replicas"]]).keys() == expected.keys()

    def test_between_steps_zero3_holds_only_norms_and_biases_whole(self, run):
        _, config, ranks = run
        state = reference(config).state_dict()
        small = sum(w.numel() for w in state.values() if w.numel() <= 10 * config.model.hidden_size)
        held = small if config.parallel.zero_stage == 3 else sum(w.numel() for w in state.values())
        if config.parallel.pipeline_stages == 1:
            assert [rank["resident"] for rank in ranks] == [held] * len(ranks)
            assert small < 0.2 * sum(w.numel() for w in state.values())

    def test_order_is_the_models(self, run):
        _, config, ranks = run
        order = list(reference(config).state_dict())
        for rank in ranks:
            names = [s[0] for s in rank["start"]]
            assert names == [name for name in order if name in names]


class TestGradients:
    def test_of_the_first_step_is_autograds(self, run):
        only(run, FP32)
        _, config, ranks = run
        model = reference(config)
        full_loss(model, config, 0).backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        found = assembled([rank["gradients"][0] for rank in ranks])
        assert relative(found, expected) < 1e-6
        double = reference(config).double()
        full_loss(double, config, 0).backward()
        assert relative(found, {name: p.grad for name, p in double.named_parameters()}) < 1e-6

    def test_in_bf16_it_is_that_of_the_rounded_model(self, run):
        only(run, BF16)
        _, config, ranks = run
        model = reference(config, torch.bfloat16).double()  # the weights rounded, the arithmetic exact
        full_loss(model, config, 0).backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        # One bf16 rounding is 2^-9 = 0.2% at most; a model of four layers adds up some of them.
        assert relative(assembled([rank["gradients"][0] for rank in ranks]), expected) < 0.02

    def test_norms(self, run):
        name, config, ranks = run
        clip = config.optimizer.clip_norm
        for step in range(targets.STEPS):
            gradient = assembled([rank["gradients"][step] for rank in ranks])
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
            for rank in ranks:
                _, _, found, clipped, skipped = rank["steps"][step]
                assert found == pytest.approx(norm, rel=1e-5 if name in FP32 else 1e-3)
                assert clipped == pytest.approx(min(norm, clip) if clip else norm, rel=1e-5 if name in FP32 else 1e-3)
                assert not skipped


class TestSteps:
    def test_loss_is_the_global_sum_over_the_global_count(self, run):
        name, config, ranks = run
        expected = full_loss(reference(config), config, 0).item()
        count = int((targets.global_batch(0)["labels"] != -100).sum())
        for rank in ranks:
            loss, tokens, *_ = rank["steps"][0]
            assert loss == pytest.approx(expected, rel=1e-6 if name in FP32 else 5e-3)
            assert tokens == count

    def test_adamw_as_torch_has_it(self, run):
        """Five steps with changing rates, some clipped: weights and both moments."""
        only(run, FP32)
        _, config, ranks = run
        model, section = reference(config), config.optimizer
        kept = {"norms": "norm", "biases": "bias", "embeddings": ("token_embedding", "positions", "output_projection")}

        def decays(name):
            if "norm" in name:
                return "norms" not in section.no_decay
            if name.endswith("bias"):
                return "biases" not in section.no_decay
            return not (any(part in name for part in kept["embeddings"]) and "embeddings" in section.no_decay)

        groups = [
            {
                "params": [p for name, p in model.named_parameters() if decays(name) == flag],
                "weight_decay": section.weight_decay if flag else 0.0,
            }
            for flag in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=section.betas, eps=section.eps)
        norms = []
        for step in range(targets.STEPS):
            for group in optimizer.param_groups:
                group["lr"] = targets.LR[step]
            optimizer.zero_grad()
            loss = full_loss(model, config, step)
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), section.clip_norm or math.inf)))
            optimizer.step()
            assert ranks[0]["steps"][step][0] == pytest.approx(loss.item(), rel=1e-5)
            assert ranks[0]["steps"][step][2] == pytest.approx(norms[-1], rel=1e-5)
        if section.clip_norm:
            assert min(norms) < section.clip_norm < max(norms), f"some clipped, some not: {norms}"
        found = {q: assembled([rank[q] for rank in ranks]) for q in ("weight", "exp_avg", "exp_avg_sq")}
        for name, parameter in model.named_parameters():
            state = optimizer.state[parameter]
            assert float((found["weight"][name] - parameter.detach()).abs().max()) <= 1e-6, name
            for q in ("exp_avg", "exp_avg_sq"):
                scale = max(float(state[q].abs().max()), 1e-3)  # the keys' bias has noise only
                assert float((found[q][name] - state[q]).abs().max()) <= 1e-5 * scale, (name, q)
        assert [rank["updates"] for rank in ranks] == [targets.STEPS] * len(ranks)

    def test_a_step_that_is_not_finite_is_skipped(self, run):
        """After the five: neither weights nor moments nor the count of updates move."""
        for skipped, norm, updates, same in (rank["not finite"] for rank in run[2]):
            assert skipped
            assert not math.isfinite(norm)
            assert (updates, same) == (targets.STEPS, True)

    def test_needs_data(self, run):
        assert all(rank["needs_data"] for rank in run[2])


class TestEvaluation:
    @pytest.mark.parametrize(("when", "quantity"), [("before", "start"), ("after", "weight")])
    def test_is_the_plain_equation_without_dropout(self, run, when, quantity):
        """From the shards' own weights, in fp64 by the written-out equations."""
        self.evaluates_to(run, when, assembled([rank[quantity] for rank in run[2]]))

    def test_what_is_written_into_shards_counts(self, run):
        """Each rank wrote into what it owns alone; then all forward passes have it."""
        weights = assembled([rank["weight"] for rank in run[2]])
        for name, weight in weights.items():
            if targets.row_of(name) == "decoder.layers.1":
                weight.view(-1).add_(targets.moved_by(0, weight.numel()))
        self.evaluates_to(run, "changed", weights)

    def evaluates_to(self, run, when, weights):
        name, config, ranks = run
        dtype = torch.bfloat16 if name in BF16 else torch.float32
        weights = {n: w.to(dtype).double() for n, w in weights.items()}
        batch = targets.global_batch(77)
        logits, _ = equations.encoder_decoder(weights, config.model, batch)
        expected, count = equations.summed_loss(logits, batch["labels"])
        for rank in ranks:
            loss, found = rank[when]
            assert found == count
            assert loss == pytest.approx(float(expected), rel=2e-6 if name in FP32 else 5e-3)

    def test_what_is_put_back_counts_again(self, run):
        assert [rank["restored"] for rank in run[2]] == [rank["after"] for rank in run[2]]


class TestCollectives:
    @pytest.fixture(scope="class", params=[1, 3])
    def ranks(self, request):
        return run_group(targets.collective_calls, request.param)

    def test_results(self, ranks):
        size = len(ranks)
        for rank, found in enumerate(ranks):
            assert found["sum"] == [sum(1.0 + r for r in range(size)), sum(10.0 * r for r in range(size))]
            assert found["max"] == [size - 1, 0]
            assert found["any"] == [size > 1, False, True]
            assert found["rows"] == [[2**60 + r, -r] for r in range(size)]
            assert found["identity"] == (rank, size, rank == 0)
            assert found["texts"] == ["naïve 0 ∑", "x" * (70_000 if size > 1 else 0), ""]

    def test_arguments_stay_as_they_are(self, ranks):
        """In one process nothing is changed; so it must be in three."""
        for rank, found in enumerate(ranks):
            assert found["argument after sum"] == [1.0 + rank, 10.0 * rank]
            assert found["argument after max"] == [rank, -rank]
