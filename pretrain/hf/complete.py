"""From what a user names, a folder or a run, to a model that completes prompts."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from pretrain.errors import CheckpointError, UserError
from pretrain.hf.completers import COMPLETERS, Completer
from pretrain.hf.export import export, read_origin
from pretrain.hf.hosts import host_of_type
from pretrain.state.reader import resolve_checkpoint

RUN_EXPORT = "hf"


def exported_folder(path: Path) -> Path:
    """The Hugging Face folder that a user means: itself, or a run's RUN/hf, which is made if it is not there.

    Raises:
        UserError: neither.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a run or a folder that convert_hf.py export wrote")
    if not (path / "checkpoints").is_dir() and not (path / RUN_EXPORT).is_dir():
        raise UserError(f"{path}: neither a run (no checkpoints/) nor an exported folder (no config.json)")
    folder = path / RUN_EXPORT
    if not (folder / "config.json").is_file():
        export(path, folder)
    return folder


def stale(path: Path, folder: Path) -> str | None:
    """A line for the user if the run at `path` has a newer checkpoint than its export in `folder`."""
    origin = read_origin(folder)
    if folder == Path(path) or origin is None:
        return None
    try:
        newest = resolve_checkpoint(path)
    except CheckpointError:  # an export outlives its checkpoints
        return None
    if newest.name.endswith(f"{origin['step']:08d}"):
        return None
    return f"{folder} is of step {origin['step']}, the newest checkpoint is {newest.name}; export again to use it"


def open_completer(folder: Path) -> Completer:
    """The model of an exported folder, as what it was trained for; of another folder, as what its class is for.

    Raises:
        UserError: the folder holds no model that can be used here.
    """
    try:
        host = host_of_type(AutoConfig.from_pretrained(folder, local_files_only=True).model_type)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no model that transformers can load ({' '.join(str(error).split())})") from error
    origin = read_origin(folder)
    objective = origin["experiment"]["objective"]["kind"] if origin else host.objective
    if objective not in COMPLETERS:
        raise UserError(f"{folder}: nothing is known of what to do with a model of objective.kind {objective}")
    return COMPLETERS[objective](folder, host)
