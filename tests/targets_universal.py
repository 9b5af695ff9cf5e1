"""What somebody from the DeepSpeed world runs: their own module and engine around our layers, their own loop."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import deepspeed
import torch
from harness import train_main
from targets_engine import LR, engine, experiment, global_batch, micro_batches, model_spec, own_batches
from torch import nn

from pretrain.checkpoint.save import Saver
from pretrain.models.layer_list import LayerList
from pretrain.objectives.cross_entropy import TokenLoss, count_targets
from pretrain.state.keep import Keep

PLAIN = {"model.encoder_layers": 1, "model.decoder_layers": 1, "optimizer.clip_norm": 1.3}


class Theirs(nn.Module):
    """Holds our layers under a name of its own."""

    def __init__(self, layers, place):
        super().__init__()
        self.add_module(place, layers)
        self.place = place

    def forward(self, state):
        return getattr(self, self.place)(state)


def join(log):
    """Enter the group as a launched rank would; (rank, world size)."""
    from pretrain.launch.environment import rank_environment
    from pretrain.parallel import process_group

    environment = rank_environment(os.environ)
    process_group.start(environment, Path(log) / f"rank_{environment.rank}.log")
    return environment.rank, environment.world_size


def their_engine(stage, seed, place, world):
    """A real DeepSpeed engine over our layers, nothing of ours around it; (engine, spec)."""
    from pretrain.parallel.optimizer import adamw

    config = experiment(PLAIN)
    spec = model_spec(config)
    layers = LayerList(spec, seed=seed)
    settings = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4 // world,
        "gradient_clipping": 1.3,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000000, "allgather_bucket_size": 1000000},
        "checkpoint": {"load_universal": True},
    }
    theirs, *_ = deepspeed.initialize(
        model=Theirs(layers, place),
        optimizer=adamw(layers, config.optimizer),
        config=settings,
        dist_init_required=False,
    )
    return theirs, spec


def their_step(theirs, spec, step, rank, world):
    """One step of the loop that DeepSpeed's tutorial has; the loss of the global batch."""
    from pretrain.parallel import collectives

    for group in theirs.optimizer.param_groups:
        group["lr"] = LR[step]
    batch = global_batch(step)
    targets = int(count_targets(batch["labels"]))
    mine = micro_batches(batch, rank, world)
    total = torch.zeros((), dtype=torch.float64)
    for part in mine:
        (logits,) = theirs(spec.state(part))
        loss = TokenLoss().sum(logits, part["labels"])
        total += loss.detach()
        theirs.backward(loss * len(mine) * world / targets)
        theirs.step()
    return float(collectives.sum_over(total)) / targets


def load_and_train(rank, folders, stages, place, log):
    """Fresh engines of other weights load universal folders and train on; (folder's place, stage) -> findings."""
    rank, world = join(log)
    found = {}
    for number, folder in enumerate(folders):
        for stage in stages:
            theirs, spec = their_engine(stage, 99, place, world)
            path, _ = theirs.load_checkpoint(str(folder))
            assert path is not None
            if stage == 3:
                # DeepSpeed gives all groups one tensor to count in, so that each step counts once a group.
                for state in theirs.optimizer.optimizer.state.values():
                    state["step"] = state["step"].clone()
            found[number, stage] = {
                "losses": [their_step(theirs, spec, step, rank, world) for step in (2, 3)],
                "counters": (theirs.global_steps, theirs.skipped_steps, theirs.global_samples),
            }
    return found


def save_and_go_on(rank, changes, folder, log, layout):
    """Our engine: two steps, saved through our saver, then the rest; losses of all."""
    *_, own = engine({**PLAIN, **changes}, log)
    losses = [own.train_step(own_batches(own, step), LR[step]).loss for step in (0, 1)]
    saver = Saver(Path(folder), Keep(1), layout, {}, lambda saved: None)
    training = {
        "progress": {"step": 2, "samples": 16, "skipped": 0},
        "data": {"samples_consumed": 16, "skip_ranges": [], "fingerprint": "x=1"},
        "optimizer_steps": own.optimizer_step_count(),
    }
    saver.begin(2, own, training, 0.0)
    saver.wait()
    return losses + [own.train_step(own_batches(own, step), LR[step]).loss for step in (2, 3)]


def train_from_universal(rank, argv, folder):
    """The trainer resumes, but weights and moments are loaded by the DeepSpeed engine of its own pipeline."""
    from pretrain.checkpoint import restore

    def fill(engine, checkpoint, moments):
        for shard in engine.owned_shards(replicas=True):
            shard.weight.fill_(9.0)
        engine.deepspeed._config.load_universal_checkpoint = True
        assert engine.deepspeed.load_checkpoint(str(folder))[0] is not None

    restore.fill_weights = fill
    return train_main(rank, argv)


def train_and_save(rank, stages, folder, place, log):
    """Their engines train, save as DeepSpeed does and tell their whole state by stage; rank 0 converts to universal."""
    from deepspeed.checkpoint import ds_to_universal
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    rank, world = join(log)
    states = {}
    for stage in stages:
        theirs, spec = their_engine(stage, 4, place, world)
        for step in (0, 1, 2):
            their_step(theirs, spec, step, rank, world)
        theirs.save_checkpoint(str(folder), tag=f"stage_{stage}", client_state={"who": "they"})
        states[stage] = {}
        if stage < 3:  # DeepSpeed links moments after the first group's step, when the second has none yet
            theirs.optimizer._hp_optimizer_states_linked = False
            theirs.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in theirs.module.named_parameters():
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
            states[stage][name] = [value.detach().clone().numpy() for value in values]
        if rank == 0:
            options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            source, out = str(Path(folder) / f"stage_{stage}"), str(Path(folder) / f"stage_{stage}_u")
            ds_to_universal.main(
                Namespace(input_folder=source, output_folder=out, inject_missing_state=True, **options)
            )
    return states
