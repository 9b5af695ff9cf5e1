"""Find the newest good checkpoint and put it into a trainer, whatever layout wrote it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.save import TEMPORARY
from pretrain.checkpoint.snapshot import RNG
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.errors import CheckpointError, ConfigError, UserError, WriteFailed
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.bounded import BadFile, read_bounded
from pretrain.state.bounded_yaml import YAML_BYTES, check_yaml
from pretrain.state.index import MOMENTS, WEIGHT
from pretrain.state.manifest import Manifest
from pretrain.state.reader import (
    DAMAGED,
    PREFIX,
    ROLLED_BACK,
    Checkpoint,
    complete_checkpoints,
    list_checkpoints,
    point_latest,
    step_of,
)
from pretrain.state.run_files import CHECKPOINTS, CONFIG, METRICS
from pretrain.state.training_state import lacks
from pretrain.state.writer import TRAINING
from pretrain.training.loop import Trainer
from pretrain.training.run_folder import RunFolder

MAY_CHANGE = (
    "name",
    "run.",
    "parallel.",
    "batch.micro_batch_size",
    "data.train",  # the data's fingerprint decides, not its path
    "data.validation",
    "data.tokenizer",
    "data.glob",
    "data.skip_ranges",
    "train.max_steps",
    "train.stop_at_step",
    "train.precision",
    "train.activation_checkpointing",
    "train.threads",
    "train.canary",
    "evaluation.",
    "monitors.",
    "verdicts.",
    "policy.",
    "checkpoint.",
    "watchdog.",
)
"""Keys (or sections, with a dot at the end) that may differ between sessions of a run; all others decide its result."""


def newest_good(checkpoints: Path, newest: int | None = None) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with each newer one; those are set aside.

    Collective: rank 0 lists, all ranks divide the hashing. A damaged folder is renamed to damaged_step_N, so that it
    counts neither as the newest nor among those that are kept.

    Args:
        checkpoints: RUN/checkpoints.
        newest: look only at steps up to this one; default: at all.

    Raises:
        CheckpointError: none is whole; nothing is renamed then.
    """
    listed = [folder for folder in list_checkpoints(checkpoints) if newest is None or step_of(folder) <= newest]
    names = collectives.share_text("\n".join(folder.name for folder in listed)).split()
    problems: dict[Path, str] = {}
    for folder in (checkpoints / name for name in names):
        found = _opened(folder)
        if isinstance(found, Checkpoint):
            _set_aside(problems)
            return found, [f"{damaged}: {problem}" for damaged, problem in problems.items()]
        problems[folder] = found
    damage = "; ".join(
        [f"{folder.name}: {problem}" for folder, problem in problems.items()]
        + [f"{folder.name}: set aside as damaged" for folder in sorted(checkpoints.glob(f"{DAMAGED}{PREFIX}*"))]
    )
    raise CheckpointError(
        f"{checkpoints}: no checkpoint is whole ({damage or 'there is none'}); "
        "restore one, or start anew with another run.dir"
    )


def _opened(folder: Path) -> Checkpoint | str:
    """A checkpoint, if it is whole on every rank; else what is wrong with it, alike on every rank. Collective."""
    found, problem = None, ""
    try:
        found = Checkpoint(folder, share=(collectives.rank(), collectives.world_size()))
    except CheckpointError as error:
        problem = str(error).removeprefix(f"{folder}: ")
    except OSError as error:  # a disk that fails to read, a file that may not be read
        problem = f"cannot be read ({error})"
    problem = collectives.first_text(problem)
    return problem or found or ""


def trusted(checkpoints: Path, newest: int) -> Checkpoint | None:
    """The newest whole checkpoint up to step `newest`, which is the newest of all from now on; None if there is none.

    Collective. Newer ones are renamed to rolled_back_step_N; those that an earlier rollback left behind go.

    Raises:
        WriteFailed: on every rank, if they cannot be renamed.
    """
    try:
        found, _ = newest_good(checkpoints, newest)
    except CheckpointError:
        return None

    def tidy() -> None:
        for left in checkpoints.glob(f"{ROLLED_BACK}*"):
            shutil.rmtree(left)
        for folder in list_checkpoints(checkpoints):
            if step_of(folder) > found.step:
                folder.rename(folder.with_name(f"{ROLLED_BACK}{folder.name}"))
        with suppress(OSError):  # it is for people, and the next save puts it right
            point_latest(checkpoints, found.folder)

    collectives.on_first(tidy, _not_set_aside)
    return found


def _set_aside(damaged: Iterable[Path]) -> None:
    """Rename them. Collective.

    Raises:
        WriteFailed: on every rank, if it cannot.
    """

    def rename() -> None:
        for folder in damaged:
            aside = folder.with_name(f"{DAMAGED}{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    collectives.on_first(rename, _not_set_aside)


def _not_set_aside(reason: str) -> WriteFailed:
    return WriteFailed(f"run.dir: a checkpoint cannot be set aside ({reason}); see to its disk and its rights")


def changed_keys(run: Path, experiment: Experiment) -> list[str]:
    """Dotted keys that have another value in the run so far and may not change between sessions.

    Raises:
        ConfigError: the config that says what the run was cannot be read.
    """
    for config in _configs_of(run):
        try:
            saved = load_experiment(str(config.absolute())).model_dump(mode="json")
        except ConfigError:
            if config.exists():
                raise
            continue  # the session before, which is ending, has removed its old checkpoint meanwhile
        differing = _differing(saved, experiment.model_dump(mode="json"))
        return [key for key in differing if not key.startswith(MAY_CHANGE)]
    return []


def _configs_of(run: Path) -> Iterator[Path]:
    """Configs that say what a run was, the best first: those of its checkpoints, newest first, then the folder's.

    A damaged one is passed over: its checkpoint will be set aside.
    """
    for folder in complete_checkpoints(run / CHECKPOINTS):
        try:
            manifest = Manifest.read(folder)
            if CONFIG in manifest.files and manifest.only(CONFIG).damaged(folder) is None:
                check_yaml(read_bounded(folder / CONFIG, YAML_BYTES))
                yield folder / CONFIG
        except (CheckpointError, BadFile):
            continue
    if (run / CONFIG).exists():
        yield run / CONFIG


def _differing(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*saved, *current}):
        old, new = saved.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differing(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def fill_weights(engine: Engine, checkpoint: Checkpoint, moments: bool) -> None:
    """Copy weights, and moments if asked for, into the shards this rank owns, and publish them.

    Collective.

    Raises:
        CheckpointError: on every rank, if a parameter is missing, has another shape, or is left over.
    """
    quantities = (WEIGHT, *MOMENTS) if moments else (WEIGHT,)
    problem, elements = "", 0
    try:
        for quantity in quantities:
            if not checkpoint.has(quantity):
                raise CheckpointError(f"{checkpoint.folder}: it has weights alone; use it with --init-from")
        for shard in engine.owned_shards(replicas=True):
            checkpoint.expect(shard.name, shard.shape)
            for quantity in quantities:
                checkpoint.read_into(getattr(shard, quantity), shard.name, shard.start, quantity)
        elements = sum(shard.weight.numel() for shard in engine.owned_shards())
    except CheckpointError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{checkpoint.folder}: cannot be read ({error})"
    if reason := collectives.first_text(problem):
        raise CheckpointError(reason)
    used = int(collectives.sum_over(torch.tensor(elements)).item())
    saved = sum(math.prod(checkpoint.index.shape(name)) for name in checkpoint.index.names())
    if used != saved:
        raise CheckpointError(
            f"{checkpoint.folder}: it holds {saved:,} weights, the model {used:,}; is it a checkpoint of another model?"
        )
    engine.publish_weights()


def resume(trainer: Trainer, checkpoint: Checkpoint, within_session: bool = False) -> None:
    """Put everything back: weights, moments, step, data position, callbacks; cut the logs beyond it.

    Args:
        trainer: at its start, or (`within_session`) between two steps.
        checkpoint: of this run.
        within_session: this is a rollback.
    """
    fill_weights(trainer.engine, checkpoint, moments=True)
    _together(checkpoint, lambda: _load_state(trainer, checkpoint))
    try:
        trainer.resumed(checkpoint, within_session)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Every rank reads the same file, so it is raised on every rank.
        raise _cannot_be_put_back(checkpoint, error) from error
    cut_logs(trainer.folder, trainer.progress.step)


def _load_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state = checkpoint.training()
    if missing := lacks(state):
        raise CheckpointError(
            f"{checkpoint.folder}: {TRAINING} does not say {missing}, so it cannot be gone on from; convert it with "
            "--recipe, or use --init-from"
        )
    trainer.load_state_dict(state)
    _restore_rng(checkpoint)


def _together(checkpoint: Checkpoint, action: Callable[[], None]) -> None:
    """Run it on this rank, which uses no collective; if it fails on any rank, fail on every rank. Collective.

    Raises:
        UserError: as the action raised it, or CheckpointError for what a state of another form makes it raise.
    """
    own: UserError | None = None
    try:
        action()
    except UserError as error:
        own = error
    except Exception as error:  # callbacks read what they themselves have written: the file says something else
        own = _cannot_be_put_back(checkpoint, error)
    reason = collectives.first_text(str(own or ""))
    if reason:
        raise own or CheckpointError(reason)


def _cannot_be_put_back(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CheckpointError(
        f"{checkpoint.folder}: {TRAINING} holds a state that cannot be put back ({what}); restore the file, move the "
        "folder away so that an older one is used, or keep its weights with --init-from and another run.dir"
    )


def start_anew(folder: RunFolder) -> None:
    """Clear the logs for step 0; say in one line if a session died here before its first checkpoint was complete."""
    begun = folder.checkpoints.is_dir() and any(folder.checkpoints.glob(f"{TEMPORARY}*"))
    logged = (folder.path / METRICS).is_file() and (folder.path / METRICS).stat().st_size > 0
    if folder.writes and (begun or logged):
        reason = "an earlier session ended before its first checkpoint was complete; training starts anew at step 0"
        folder.alert(0, reason)
    cut_logs(folder, 0)


def cut_logs(folder: RunFolder, step: int) -> None:
    """Cut the logs off behind `step`. Collective.

    Raises:
        WriteFailed: on every rank, if rank 0 cannot.
    """
    collectives.on_first(lambda: folder.cut_logs(step), lambda reason: WriteFailed(f"run.dir: {reason}"))


def _restore_rng(checkpoint: Checkpoint) -> None:
    """torch's generator, where this rank existed at the save; nothing in training draws from it."""
    state = checkpoint.rank_tensor(collectives.rank(), RNG)
    if state is None:
        return
    try:
        torch.set_rng_state(state)
    except (RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{checkpoint.folder}: {RNG} is no state of torch's generator ({reason})") from None
