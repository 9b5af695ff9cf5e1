"""The Hugging Face Trainer over the native class that our export goes to, as the engine's rival.

The class, its configuration and its weights come from `pretrain.hf`, so it is the same model. A real
`transformers.Trainer` runs `train()` with its own data loader, collator, autocast, clipping, optimizer
(adamw_torch_fused, its default) and scheduler; logging, evaluation and saving are off. A callback stops its clock when
a step has ended, lets the engine take its turns meanwhile, and starts the clock again when it lets the Trainer go on:
all that the Trainer does from one step's end to the next is timed, fetching and collating ready-made samples included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_sides import LOSS, Options, Rival, Seen, Turns, Work
from pretrain.data.loader import Batch
from pretrain.errors import ConfigError
from pretrain.hf import mapping
from pretrain.hf.hosts import Host, host_for
from pretrain.hf.quiet import quiet
from pretrain.hf.trained import TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Fold
from pretrain.models.layer_list import LayerList

NEUTRAL: dict[str, Any] = {
    "train.activation_checkpointing": 0,
    "model.dropout": 0.0,
    "model.embedding_gradient_shrink": 1.0,
    "loss.label_smoothing": 0.0,
    "loss.z_loss": 0.0,
}
"""Keys under which the Trainer would do other work, or draw other random numbers, and the value where it does not."""
NO_DECAY = {"norms", "biases"}
"""What the Trainer's optimizer does not decay; embeddings it does. Native classes have no gains."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def check(work: Work) -> tuple[Host, Architecture]:
    """The native class that the work can be compared on, and the model without weights.

    Raises:
        ConfigError: the Trainer would do other work; one line that names the key and the cure.
        UserError: no native class holds the model.
    """
    experiment, objective = work.experiment, work.train.objective
    if work.batch.world_size > 1:
        raise ConfigError(
            f"the Hugging Face Trainer is compared in one process, not in {work.batch.world_size}; "
            "set parallel.pipeline_stages=1 and leave out --processes"
        )
    if work.batch.micro_batches > 1:
        raise ConfigError(
            f"batch.micro_batch_size = {experiment.batch.micro_batch_size}: the Hugging Face Trainer averages over "
            f"micro-batches where we average over tokens; set it to {experiment.batch.global_batch_size}"
        )
    stated = experiment.model_dump()
    for key, neutral in NEUTRAL.items():
        section, name = key.split(".")
        value = stated.get(section, {}).get(name, neutral)
        if value != neutral:
            raise ConfigError(f"{key} = {value}: the Hugging Face Trainer does not do that; set {key}={neutral}")
    no_decay = set(experiment.optimizer.no_decay)
    if no_decay - {"gains"} != NO_DECAY:
        raise ConfigError(
            f"optimizer.no_decay = [{', '.join(sorted(no_decay))}]: the Hugging Face Trainer leaves out norms and "
            "biases; set optimizer.no_decay=[norms,biases,gains]"
        )
    if objective.segmented:
        raise ConfigError(
            f"objective.kind = {stated['objective']['kind']}: native Hugging Face classes honour neither document "
            "masks nor prefixes; set data.document_mask=false and another objective"
        )
    with torch.device("meta"):
        tokens: Any = work.spec.shared[TOKEN_TABLE.removesuffix(".weight")]()
    architecture = Architecture(experiment.model, len(tokens.weight), objective.source_length, objective.target_length)
    return host_for(architecture), architecture


def native_model(host: Host, architecture: Architecture, work: Work) -> nn.Module:
    """The host's model in fp32 with the weights that the engine starts from.

    A tensor that ours does not have (BERT's token types) stays zero: it is not trained.
    """
    layers = LayerList(work.spec, seed=work.experiment.train.seed)
    ours = dict(layers.named_parameters())
    with quiet():
        model = mapping.built_and_filled(host, architecture, work.special, torch.float32, ours.__getitem__, ours)
    foreign = {entry.target for entry in host.entries(architecture) if entry.source is None}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in foreign)
    return model


def native_samples(steps: Sequence[list[Batch]], inputs: Sequence[str], causal: bool) -> list[dict[str, Tensor]]:
    """The samples of all steps in order, as arguments of the native class.

    Args:
        steps: micro-batches of every step.
        inputs: names of the model's inputs; the dropout key is none of the native class's.
        causal: the class would shift the labels; they are given as shifted ones, which it takes as they are.
    """
    names = [*(name for name in inputs if name != "sample_key"), "labels"]
    samples = []
    for batch in (batch for batches in steps for batch in batches):
        for row in range(len(batch["labels"])):
            sample = {name: batch[name][row] for name in names}
            samples.append(sample | ({"shift_labels": sample["labels"]} if causal else {}))
    return samples


class ObservedTrainer(Trainer):
    """A Trainer that keeps a reference to its last loss and gradient norm."""

    last_loss: Tensor
    last_norm: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self.last_norm = super()._clip_grad_norm(model)
        return self.last_norm


class TakeTurns(TrainerCallback):
    """Runs the engine's turns between the Trainer's steps, and clocks the Trainer.

    Args:
        turns: whose turn it is.
        clock: for the Trainer's times.
        seen: the Trainer's last loss and gradient norm.
    """

    def __init__(self, turns: Turns, clock: RankClock, seen: Callable[[], tuple[float, float]]):
        self.turns, self.clock, self.seen = turns, clock, seen

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._go_on(control, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        spent = self.clock.stop()
        self.turns.rival_took(Seen(*self.seen(), spent))
        self._go_on(control, kwargs["optimizer"])

    def _go_on(self, control: Any, optimizer: torch.optim.Optimizer) -> None:
        if not self.turns.reach_rival():
            control.should_training_stop = True
            return
        for group in optimizer.param_groups:
            group["lr"] = self.turns.rates[self.turns.next]
        self.clock.start()


class TrainerRival(Rival):
    """The Trainer in this process, with as many threads as the engine.

    A native class holds DeepNorm with its output projections divided by alpha. AdamW moves a divided matrix by as much
    as a whole one, so the two models train differently: both are then kept where they are, by learning rates of 0
    (the optimizers do the same arithmetic), and gradient norms are not compared.
    """

    title = "the Hugging Face Trainer"

    def __init__(self, work: Work, clock: RankClock, log: Path, options: Options):
        super().__init__(work, clock, log, options)
        self.host, self.architecture = check(work)
        transforms = [entry.transform for entry in self.host.entries(self.architecture)]
        self.folded = any(isinstance(transform, Fold) and transform.alpha != 1.0 for transform in transforms)
        if self.folded:
            self.comparable = (LOSS,)
        self.attention = ""

    @staticmethod
    def check(work: Work) -> None:
        check(work)

    def rates(self, rates: Sequence[float]) -> list[float]:
        return [0.0] * len(rates) if self.folded else list(rates)

    def run(self, turns: Turns) -> None:
        trainer: Any
        trainer, start_up = self.clock.together(lambda: self._trainer(turns))
        turns.rival.start_up_seconds = start_up.seconds
        self.attention = trainer.model.config._attn_implementation

        def seen() -> tuple[float, float]:
            return float(trainer.last_loss), float(trainer.last_norm)

        trainer.add_callback(TakeTurns(turns, self.clock, seen))
        with quiet():
            trainer.train()

    def facts(self) -> dict[str, Any]:
        return {
            "class": self.host.model_class.__name__,
            "attention": self.attention,
            "optimizer": "adamw_torch_fused",
            "learning_rate_0": self.folded,
        }

    def _trainer(self, turns: Turns) -> ObservedTrainer:
        model = native_model(self.host, self.architecture, self.work)
        causal = "decoder_input_ids" not in self.work.spec.inputs and self.architecture.target_length > 0
        samples = native_samples(turns.batches, self.work.spec.inputs, causal)
        with without(LAUNCHER), quiet():
            return ObservedTrainer(
                model=model,
                args=self._arguments(len(turns.rates)),
                train_dataset=cast(Any, samples),  # a list is a map-style dataset
                data_collator=default_data_collator,
            )

    def _arguments(self, steps: int) -> TrainingArguments:
        experiment, on_cpu = self.work.experiment, self.clock.device.type == "cpu"
        optimizer = experiment.optimizer
        arguments = TrainingArguments(
            output_dir=str(self.log.parent / "trainer"),
            per_device_train_batch_size=experiment.batch.global_batch_size,
            max_steps=steps,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=not on_cpu,
            learning_rate=optimizer.lr,
            lr_scheduler_type="constant",  # the callback sets each step's rate
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            adam_epsilon=optimizer.eps,
            max_grad_norm=optimizer.clip_norm,
            bf16=experiment.train.precision == "bf16",
            use_cpu=on_cpu,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        if not on_cpu:
            arguments._n_gpu = 1  # or it would spread the batch over all GPUs of the machine
        return arguments


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Within: environment variables that are not there, so that the Trainer does not join our process group."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
