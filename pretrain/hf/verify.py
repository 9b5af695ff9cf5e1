"""Whether a Hugging Face model computes what the trained one does: logits in fp64 and fp32, files, tokenizer.

The trained model is the training engine's own modules. Bounds are for logits of size one; larger logits widen them
in proportion. A mismatch is a CheckpointError, never a warning.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.hf import mapping
from pretrain.hf.hosts import Host, host_for
from pretrain.hf.probe import probe_batch, probe_texts
from pretrain.hf.quiet import quiet
from pretrain.hf.tokenizer import Marks, verify_tokenizer
from pretrain.hf.trained import TrainedModel
from pretrain.state.run_files import TOKENIZER, merge_summary

FOLD_BOUND = 1e-12  # the fold in memory, fp64
SAVED_BOUND = 1e-6  # a float32 folder read back, computed in fp64: W / alpha was rounded to fp32
FLOAT32_BOUND = 1e-4  # the same folder computed in fp32
# Keys of config.json that say where and how it was written, not what the model is.
UNCOMPARED = {"architectures", "dtype", "transformers_version", "_name_or_path"}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Verification:
    """Largest absolute differences of logits from the trained model's in fp64.

    Attributes:
        fold_fp64: the host filled in memory, in fp64.
        saved_fp64: the written folder read back and computed in fp64: what the rounding of its weights costs.
        saved_native: the same computed in the folder's own dtype.
        largest_logit: of the trained model.
        dtype: of the folder's weights.
    """

    fold_fp64: float
    saved_fp64: float
    saved_native: float
    largest_logit: float
    dtype: str

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"fold in memory, fp64: {self.fold_fp64:.1e}",
            f"written folder, fp64: {self.saved_fp64:.1e}",
            f"written folder, {self.dtype}: {self.saved_native:.1e}",
            f"(largest differences of logits on real text; the largest logit is {self.largest_logit:.2f})",
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(trained: TrainedModel, folder: Path, scratch: Path | None = None) -> Verification:
    """Compare the Hugging Face model in `folder` with what was trained.

    Args:
        trained: the checkpoint.
        folder: what `export` wrote.
        scratch: where the model is saved once more for a while; default: the system's temporary folder.

    Raises:
        CheckpointError: they differ; one line says by how much and where first.
        UserError: the folder is not such a model.
    """
    host = host_for(trained.architecture)
    with quiet():
        _check_config(host, trained, folder)
        check_tokenizer(trained.tokenizer, folder, host.marks)
        probe = Probe(trained, host)
        fold = probe.fold_in_memory()
        model = load(host, folder)
        check_files(trained, host, folder, model, scratch)
        native = next(model.parameters()).dtype
        saved_native = probe.difference(model, native)
        saved = probe.difference(model.double(), torch.float64)
        if native == torch.float32:
            probe.bound(saved_native, FLOAT32_BOUND, f"{folder} in fp32", model)
            probe.bound(saved, SAVED_BOUND, f"{folder} in fp64", model)
    return Verification(fold, saved, saved_native, probe.largest, str(native).removeprefix("torch."))


def record(trained: TrainedModel, result: Verification) -> None:
    """Put the differences into the run's summary.json, where there is a run."""
    if trained.run:
        figures = {
            "export_max_logit_difference_fp64": result.fold_fp64,
            "export_max_logit_difference_saved": result.saved_fp64,
        }
        merge_summary(trained.run, figures)


class Probe:
    """A batch of real text, and what the trained model makes of it."""

    def __init__(self, trained: TrainedModel, host: Host):
        self.trained = trained
        self.host = host
        self.batch = probe_batch(trained.experiment, trained.tokenizer, trained.architecture.sequence_length)
        self.counts = host.answers(self.batch)
        self.logits = trained.architecture.logits(trained.checkpoint, self.batch, torch.float64)
        self.largest = self.logits[self.counts].abs().max().item()

    def fold_in_memory(self) -> float:
        """Largest difference of the host's model filled in fp64. Raises CheckpointError above FOLD_BOUND."""
        trained = self.trained
        model = mapping.built_and_filled(
            self.host,
            trained.architecture,
            trained.tokenizer.special,
            torch.float64,
            trained.checkpoint.read,
            trained.checkpoint.index.names(),
        )
        difference = self.difference(model, torch.float64)
        self.bound(difference, FOLD_BOUND, "the conversion in memory", model)
        return difference

    @torch.no_grad()
    def difference(self, model: nn.Module, dtype: torch.dtype) -> float:
        """Largest absolute difference of logits that mean something; infinite where either is not finite."""
        theirs = model.to(dtype)(**self.host.inputs(self.batch), use_cache=False).logits.double()
        if theirs.shape != self.logits.shape:
            raise CheckpointError(f"logits have shape {list(theirs.shape)} instead of {list(self.logits.shape)}")
        difference = (theirs - self.logits)[self.counts].abs().max()
        return difference.item() if torch.isfinite(difference) else float("inf")

    def bound(self, difference: float, bound: float, what: str, model: nn.Module) -> None:
        """Raises CheckpointError, naming the first bad layer, unless `difference` is within `bound`."""
        if difference <= bound * max(1.0, self.largest):
            return
        where = self.first_bad_layer(model.double(), bound)
        raise CheckpointError(
            f"{self.trained.checkpoint.folder}: {what} differs from the trained model by {difference:.1e} in its "
            f"logits (bound {bound:.0e}), first {where}; this is a defect of the conversion or a changed file"
        )

    @torch.no_grad()
    def first_bad_layer(self, model: nn.Module, bound: float) -> str:
        """Runs both again and compares the output of every layer, in order."""
        outputs: Tensors = {}
        names = [self.host.module_of(layer.name) or "" for layer in self.trained.architecture.spec.layers]
        modules = {name: module for name, module in model.named_modules() if name}
        hooks = [modules[name].register_forward_hook(_keep(outputs, name)) for name in names if name in modules]
        try:
            self.difference(model, torch.float64)
        finally:
            for hook in hooks:
                hook.remove()
        bad: list[str] = []

        def compare(layer: str, hidden: Tensor) -> None:
            theirs = outputs.get(self.host.module_of(layer) or "")
            if not bad and theirs is not None and theirs.shape == hidden.shape:
                difference = (theirs - hidden).abs()
                if self.counts.shape == hidden.shape[:2]:  # an encoder's states may have another length
                    difference = difference.where(self.counts[..., None], 0.0)
                if not difference.max().item() <= bound:
                    sample, position, _ = torch.unravel_index(difference.argmax(), difference.shape)
                    bad.append(f"at {layer} (by {difference.max():.1e}, sample {sample}, position {position})")

        self.trained.architecture.logits(self.trained.checkpoint, self.batch, torch.float64, compare)
        return bad[0] if bad else "after the last layer"


def _keep(outputs: Tensors, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        outputs[name] = output[0] if isinstance(output, tuple) else output

    return hook


def load(host: Host, folder: Path) -> Any:
    """The folder's model in its own dtype, through the Auto class that users call.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    model, info = host.auto_class.from_pretrained(folder, dtype="auto", local_files_only=True, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise CheckpointError(f"{folder}: {problem.replace('_', ' ')}: {min(map(str, info[problem]))}")
    return model.eval()


def check_files(trained: TrainedModel, host: Host, folder: Path, model: Any, scratch: Path | None = None) -> None:
    """Every tensor of the folder is the converted one bit for bit, loaded as well as saved once more.

    Raises:
        CheckpointError: names the first tensor that is not.
    """
    loaded = mapping.tensors(model)
    entries = list(host.entries(trained.architecture))
    mapping.check_map(entries, trained.checkpoint.index.names(), loaded)
    for entry in entries:
        is_now = loaded[entry.target]
        wanted = mapping.converted(entry, trained.checkpoint.read, tuple(is_now.shape)).to(is_now.dtype)
        _expect_equal(folder, entry.target, wanted, is_now)
    with tempfile.TemporaryDirectory(prefix=".resaved-", dir=scratch) as again:
        model.save_pretrained(again)
        first, second = SavedTensors(folder), SavedTensors(Path(again))
        if first.names() != second.names():
            name = min(first.names() ^ second.names())
            raise CheckpointError(f"{folder}: {name} does not survive loading and saving again")
        for name in sorted(first.names()):
            _expect_equal(folder, name, first.read(name), second.read(name))


class SavedTensors:
    """The tensors in a folder's safetensors files."""

    def __init__(self, folder: Path):
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, "pt")
            self._files.update(dict.fromkeys(file.keys(), file))

    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def _expect_equal(folder: Path, name: str, wanted: Tensor, found: Tensor) -> None:
    if not torch.equal(wanted, found):
        place = int((wanted != found).flatten().to(torch.uint8).argmax())
        raise CheckpointError(
            f"{folder}: {name} is not what was converted: element {place} is {found.flatten()[place].item()!r} "
            f"instead of {wanted.flatten()[place].item()!r}; export again"
        )


def _check_config(host: Host, trained: TrainedModel, folder: Path) -> None:
    """The folder's configuration says what ours would; else ids or sizes are wrong while logits agree."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a Hugging Face folder (no config.json)")
    found = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    wanted = host.config(trained.architecture, trained.tokenizer.special).to_dict()
    for key in sorted(wanted.keys() - UNCOMPARED):
        if found.get(key) != wanted[key]:
            raise CheckpointError(
                f"{folder}/config.json: {key} is {found.get(key)!r}, the trained model's is {wanted[key]!r}"
            )


def check_tokenizer(tokenizer: Tokenizer, folder: Path, marks: Marks) -> None:
    """The folder's fast tokenizer gives SentencePiece's ids on real strings, and the .model file is the run's.

    Args:
        tokenizer: the run's.
        folder: what `export` wrote.
        marks: what the fast tokenizer must put around a text.

    Raises:
        CheckpointError: names the first string that differs.
    """
    model = folder / TOKENIZER
    if not model.is_file() or model.read_bytes() != tokenizer.path.read_bytes():
        raise CheckpointError(f"{model}: missing, or not the tokenizer that the model was trained with")
    try:
        fast: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())})") from error
    verify_tokenizer(fast, tokenizer, probe_texts(), marks)
