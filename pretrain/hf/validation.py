"""A run's own validation loss, computed with the transformers class alone: does the folder hold what was trained?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from pretrain.data.fingerprint import differences
from pretrain.data.loader import validation_batches
from pretrain.data.prepare import cache_folder, prepare
from pretrain.data.samples import Samples
from pretrain.errors import EXIT_CRASHED, DataError, UserError
from pretrain.hf.hosts import host_of_type
from pretrain.hf.quiet import quiet
from pretrain.hf.trained import TrainedModel
from pretrain.hf.verify import load
from pretrain.objectives.cross_entropy import count_targets, cross_entropy_sum
from pretrain.state.run_files import merge_summary

BOUND = 1e-4  # nats a token where all is fp32; another order of the same fp32 sums costs about 1e-7


class NotComputed(UserError):
    """A run's validation loss cannot be computed with this folder."""


class Differs(UserError):
    """It can, and the run had another."""

    exit_code = EXIT_CRASHED


@dataclass(frozen=True)
class ValidationLoss:
    """In nats a token.

    Attributes:
        loss: of the folder's model.
        run: of the run at the folder's step; None where it was not evaluated then.
        exact: run and folder are in fp32, so that the two are one number.
    """

    loss: float
    run: float | None
    exact: bool

    def line(self) -> str:
        if self.run is None:
            return f"validation loss {self.loss:.6f} (the run was not evaluated at this step)"
        return f"validation loss {self.loss:.6f} (run: {self.run:.6f}, difference {abs(self.loss - self.run):.1e})"


@torch.no_grad()
def validation_loss_of(folder: Path, samples: Samples, count: int, micro_batch_size: int = 16) -> float:
    """Plain cross-entropy of the folder's model on fixed samples, in nats a token, computed in fp32.

    Our labels stand at the position that predicts them, so nothing is shifted: the loss is made from the logits.

    Args:
        folder: of a native class, as `export` writes it.
        samples: unshuffled, of the validation split.
        count: how many of them.
        micro_batch_size: rows of a forward pass.

    Raises:
        NotComputed: the class cannot be told the samples' documents apart.
        UserError: no such folder or class.
    """
    segmented = samples.objective.segmented
    with quiet():
        host = host_of_type(AutoConfig.from_pretrained(folder, local_files_only=True).model_type)
        if segmented and not host.segments:
            raise NotComputed(f"{host.model_class.__name__} cannot be told the documents of a sample apart")
        model = load(host, folder).float()
    loss, targets = 0.0, 0
    for batch in validation_batches(samples, count, micro_batch_size, rank=0, size=1):
        logits = model(**host.inputs(batch, segmented)).logits
        loss += float(cross_entropy_sum(logits, batch["labels"]))
        targets += int(count_targets(batch["labels"]))
    return loss / targets


def check_validation_loss(trained: TrainedModel, folder: Path) -> ValidationLoss:
    """Compute it on the run's own samples, compare it with what the run logged, and put it into its summary.json.

    Args:
        trained: a run's checkpoint.
        folder: what it was exported to.

    Raises:
        NotComputed: the run's data is not here or has changed, or the class cannot read its samples.
        Differs: run and folder are in fp32, and the difference is above BOUND.
    """
    experiment = trained.experiment
    samples = run_samples(trained)
    loss = validation_loss_of(folder, samples, experiment.evaluation.samples, experiment.batch.micro_batch_size)
    dtype = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    exact = experiment.train.precision == "fp32" and dtype == torch.float32
    result = ValidationLoss(loss, trained.metrics().get("validation_loss"), exact)
    if exact and result.run is not None and not abs(loss - result.run) <= BOUND:
        raise Differs(
            f"{folder}: {result.line()}, more than {BOUND:g}; this is no model of the run's newest checkpoint"
        )
    if trained.run is not None:
        merge_summary(trained.run, {"export_validation_loss": loss})
    return result


def run_samples(trained: TrainedModel) -> Samples:
    """The validation samples that the run was evaluated on.

    Raises:
        NotComputed: they cannot be had.
    """
    if trained.run is None:
        raise NotComputed(f"{trained.checkpoint.folder} lies in no run")
    trained_on = trained.checkpoint.training().get("data", {}).get("fingerprint")
    if trained_on is None:
        raise NotComputed(f"{trained.checkpoint.folder} does not say what data it was trained on")
    data = trained.experiment.data.model_copy(update={"tokenizer": str(trained.tokenizer.path)})
    experiment = trained.experiment.model_copy(update={"data": data})
    if not (cache_folder(experiment) / "tokens").is_dir():
        raise NotComputed(f"run.cache = {experiment.run.cache} holds no tokens; run it where the run's data is")
    try:
        prepared = prepare(experiment, quiet=True)
    except DataError as error:
        raise NotComputed(str(error)) from error
    if changed := differences(trained_on, prepared.fingerprint):
        raise NotComputed(f"the data is not what the run was trained on ({', '.join(changed)})")
    return prepared.validation
