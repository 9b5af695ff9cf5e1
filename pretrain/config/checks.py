"""What must hold between keys, and between the experiment and the machines, before any process group starts.

To add a check, write a function like those below and put it into `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pretrain.blocks.registry import BLOCKS
from pretrain.config.messages import did_you_mean
from pretrain.config.schema import Experiment, VerdictsSection
from pretrain.data.hf_dataset import PREFIX as HF_DATASET
from pretrain.data.units import TEXT, unit_name, unit_of
from pretrain.errors import ConfigError
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.vocabulary import BYTE_PIECES, MARKS, reserved_pieces
from pretrain.schedules.registry import SCHEDULES
from pretrain.state.run_files import FOLDERS


@dataclass(frozen=True)
class Machine:
    """What a run is started on."""

    world_size: int
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class BatchPlan:
    """The batch equation's solution.

    Attributes:
        data_parallel_size: processes that see different samples.
        micro_batches: forward passes of each of them in one optimizer step.
        pipeline_stages: processes that share one copy of the model.
        world_size: data_parallel_size x pipeline_stages.
    """

    data_parallel_size: int
    micro_batches: int
    pipeline_stages: int
    world_size: int


def check(experiment: Experiment, world_size: int, device: Literal["cpu", "cuda"]) -> BatchPlan:
    """Run all checks and return the batch plan.

    Raises:
        ConfigError: one line that names key, value and cure.
    """
    machine = Machine(world_size, device)
    for test in CHECKS:
        test(experiment, machine)
    stages = experiment.parallel.pipeline_stages
    data_parallel_size = world_size // stages
    micro_batches = experiment.batch.global_batch_size // (experiment.batch.micro_batch_size * data_parallel_size)
    return BatchPlan(data_parallel_size, micro_batches, stages, world_size)


def heads_divide_width(experiment: Experiment, machine: Machine) -> None:
    hidden_size, num_heads = experiment.model.hidden_size, experiment.model.num_heads
    if hidden_size % num_heads:
        good = [heads for heads in range(1, hidden_size + 1) if hidden_size % heads == 0]
        raise ConfigError(
            f"model.hidden_size = {hidden_size} is not a multiple of model.num_heads = {num_heads}; "
            f"set model.num_heads to {_nearest(good, num_heads)}"
        )


def depth_fits_family(experiment: Experiment, machine: Machine) -> None:
    model = experiment.model
    for stack, depth in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        key, has = f"model.{stack}_layers", stack in model.family
        if has and depth == 0:
            raise ConfigError(f"{key} = 0, but model.family = {model.family} has this stack; set {key} to 1 or more")
        if not has and depth:
            raise ConfigError(
                f"{key} = {depth}, but model.family = {model.family} has no {stack}; set {key}=0, or "
                "another model.family"
            )


def block_fits_model(experiment: Experiment, machine: Machine) -> None:
    model = experiment.model
    block: Any = model.block
    design = BLOCKS.of(block)
    if model.family not in design.families:
        raise ConfigError(
            f"model.block.kind = {block.kind} has no meaning in model.family = {model.family}; set model.family to "
            f"{_or(design.families)}, or another model.block.kind"
        )
    objection = design.objection(block, model)
    if objection:
        raise ConfigError(objection)


def objective_fits_family(experiment: Experiment, machine: Machine) -> None:
    objective: Any = experiment.objective
    families = OBJECTIVES.of(objective).families
    if experiment.model.family not in families:
        fitting = [kind for kind in OBJECTIVES.kinds() if experiment.model.family in OBJECTIVES[kind].families]
        raise ConfigError(
            f"objective.kind = {objective.kind} trains model.family = {_or(families)}, not {experiment.model.family}; "
            f"set objective.kind to {_or(fitting)}"
        )


def document_mask_has_meaning(experiment: Experiment, machine: Machine) -> None:
    objective: Any = experiment.objective
    if experiment.data.document_mask and not OBJECTIVES.of(objective).maskable:
        raise ConfigError(
            f"data.document_mask = true does not go with objective.kind = {objective.kind}, whose noise reaches over "
            "the ends of documents; set data.document_mask=false"
        )


def positions_fit_width(experiment: Experiment, machine: Machine) -> None:
    model = experiment.model
    if model.positions == "rotary" and model.hidden_size // model.num_heads % 2:
        raise ConfigError(
            f"model.positions = rotary turns pairs, and model.hidden_size / model.num_heads = "
            f"{model.hidden_size // model.num_heads} is odd; choose an even head size, or model.positions=learned"
        )
    if model.positions == "sinusoidal" and model.hidden_size % 2:
        raise ConfigError(
            f"model.positions = sinusoidal needs an even model.hidden_size, not {model.hidden_size}; set an even "
            "one, or model.positions=learned"
        )


def stages_divide_processes(experiment: Experiment, machine: Machine) -> None:
    stages, world_size = experiment.parallel.pipeline_stages, machine.world_size
    if world_size % stages:
        good = [count for count in range(1, world_size + 1) if world_size % count == 0]
        raise ConfigError(
            f"parallel.pipeline_stages = {stages} does not divide the number of processes = {world_size}; "
            f"start a multiple of {stages} processes, or set parallel.pipeline_stages to {_nearest(good, stages)}"
        )


def stages_have_layers(experiment: Experiment, machine: Machine) -> None:
    stages, layers = experiment.parallel.pipeline_stages, _layers(experiment)
    if stages > layers:
        raise ConfigError(
            f"parallel.pipeline_stages = {stages} is more than the model's {layers} layers; "
            f"set parallel.pipeline_stages to {layers} or less"
        )


def zero_fits_pipeline(experiment: Experiment, machine: Machine) -> None:
    stages, zero = experiment.parallel.pipeline_stages, experiment.parallel.zero_stage
    if stages == 1 or zero == 1:
        return
    why = "DeepSpeed clips wrongly there" if zero == 0 else "DeepSpeed refuses that"
    raise ConfigError(
        f"parallel.zero_stage = {zero} does not go with parallel.pipeline_stages = {stages} ({why}); "
        "set parallel.zero_stage=1, or parallel.pipeline_stages=1"
    )


def zero_fits_precision(experiment: Experiment, machine: Machine) -> None:
    precision = experiment.train.precision
    if experiment.parallel.zero_stage == 0 and precision != "fp32":
        raise ConfigError(
            f"parallel.zero_stage = 0 does not go with train.precision = {precision} (DeepSpeed would accumulate "
            f"gradients in {precision}); set parallel.zero_stage=1, or train.precision=fp32"
        )


def offload_fits_layout(experiment: Experiment, machine: Machine) -> None:
    parallel = experiment.parallel
    if not parallel.offload_optimizer:
        return
    if parallel.zero_stage == 0:
        raise ConfigError(
            "parallel.offload_optimizer = true needs a ZeRO stage, and parallel.zero_stage = 0; "
            "set parallel.zero_stage=1, or parallel.offload_optimizer=false"
        )
    if parallel.pipeline_stages > 1:
        raise ConfigError(
            "parallel.offload_optimizer = true does not go with parallel.pipeline_stages = "
            f"{parallel.pipeline_stages}; set parallel.offload_optimizer=false, or parallel.pipeline_stages=1"
        )


def precision_fits_device(experiment: Experiment, machine: Machine) -> None:
    if experiment.train.precision == "fp16" and machine.device == "cpu":
        raise ConfigError("train.precision = fp16 needs a GPU and there is none; set train.precision to bf16 or fp32")


def batch_equation_holds(experiment: Experiment, machine: Machine) -> None:
    batch = experiment.batch
    data_parallel_size = machine.world_size // experiment.parallel.pipeline_stages
    unit = batch.micro_batch_size * data_parallel_size
    if batch.global_batch_size % unit == 0:
        return
    below = batch.global_batch_size // unit * unit
    cure = f"set batch.global_batch_size to {f'{below} or ' if below else ''}{below + unit}"
    if batch.global_batch_size % data_parallel_size == 0:
        share = batch.global_batch_size // data_parallel_size
        good = [size for size in range(1, share + 1) if share % size == 0]
        cure += f", or batch.micro_batch_size to {_nearest(good, batch.micro_batch_size)}"
    raise ConfigError(
        f"batch.global_batch_size = {batch.global_batch_size} is not a multiple of batch.micro_batch_size x "
        f"data-parallel processes = {batch.micro_batch_size} x {data_parallel_size} = {unit}; {cure}"
    )


def schedule_fits_run(experiment: Experiment, machine: Machine) -> None:
    SCHEDULES.build(experiment.schedule, experiment.train.max_steps)  # raises ConfigError


def stop_lies_in_run(experiment: Experiment, machine: Machine) -> None:
    stop, last = experiment.train.stop_at_step, experiment.train.max_steps
    if stop is not None and stop > last:
        raise ConfigError(
            f"train.stop_at_step = {stop} lies behind train.max_steps = {last}; set train.stop_at_step to {last} or "
            "less, or null"
        )


def checkpointing_has_layers(experiment: Experiment, machine: Machine) -> None:
    every, layers = experiment.train.activation_checkpointing, _layers(experiment)
    if every > layers:
        raise ConfigError(
            f"train.activation_checkpointing = {every} is more than the model's {layers} layers; "
            f"set train.activation_checkpointing to {layers} or less, or 0 to keep all activations"
        )


def wandb_is_installed(experiment: Experiment, machine: Machine) -> None:
    if not experiment.monitors.wandb:
        return
    found = find_spec("wandb")
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise ConfigError(
            "monitors.wandb = true needs the package wandb, which is not installed; run `pip install wandb`, "
            "or set monitors.wandb=false"
        )


TRIGGERS = ("spike", "not_finite", "alarm")


def thresholds_rise(experiment: Experiment, machine: Machine) -> None:
    for key in VerdictsSection.model_fields:
        watch, alarm = getattr(experiment.verdicts, key)
        falls = VerdictsSection.worse_below(key)
        if watch is None and alarm is not None:
            raise ConfigError(
                f"verdicts.{key} = [null, {alarm:g}] has an alarm without a watch; state the pair [watch, alarm], "
                f"such as [{alarm:g}, {alarm:g}], or [null, null] for neither"
            )
        if alarm is not None and (alarm > watch if falls else alarm < watch):
            order = "above" if falls else "below"
            raise ConfigError(
                f"verdicts.{key} = [{watch:g}, {alarm:g}] would say alarm before watch; state the pair [watch, alarm] "
                f"with watch {order} alarm"
            )


def actions_agree(experiment: Experiment, machine: Machine) -> None:
    for trigger in TRIGGERS:
        actions = getattr(experiment.policy, f"on_{trigger}")
        if "stop" in actions and len(actions) > 1:
            raise ConfigError(
                f"policy.on_{trigger} = [{', '.join(actions)}] cannot stop and do more; leave out stop (too many "
                "rollbacks stop by themselves), or all else"
            )


def rollback_has_checkpoints(experiment: Experiment, machine: Machine) -> None:
    for trigger in TRIGGERS:
        if "rollback" not in getattr(experiment.policy, f"on_{trigger}"):
            continue
        if not experiment.checkpoint.interval:
            raise ConfigError(
                f"policy.on_{trigger} has rollback, but checkpoint.interval = 0 leaves nothing to go back to; set "
                "checkpoint.interval to 1 or more"
            )
        if experiment.checkpoint.keep_last == 1:
            raise ConfigError(
                f"policy.on_{trigger} has rollback, but checkpoint.keep_last = 1 keeps the newest checkpoint alone, "
                "which may hold the damage already; set checkpoint.keep_last to 2 or more"
            )


def alarms_have_signals(experiment: Experiment, machine: Machine) -> None:
    policy = experiment.policy
    if policy.on_alarm and not experiment.monitors.interval:
        raise ConfigError(
            "policy.on_alarm needs verdicts, but monitors.interval = 0 samples no signal; set monitors.interval to 1 "
            "or more, or policy.on_alarm=[]"
        )
    known = [*VerdictsSection.model_fields, "not_finite"]
    for name in policy.alarm_signals:
        if name not in known:
            raise ConfigError(f"policy.alarm_signals: there is no verdict {name!r}; {did_you_mean(name, known)}")


def corpora_exist(experiment: Experiment, machine: Machine) -> None:
    corpora = {"data.train": experiment.data.train, "data.validation": experiment.data.validation}
    for key, corpus in corpora.items():
        if corpus is not None and (unit_name(experiment) != TEXT or corpus.startswith(HF_DATASET)):
            unit_of(experiment).open(experiment, corpus, key)  # raises DataError
        elif corpus is not None and corpus != "embedded":
            _text_exists(key, corpus)


def tokenizer_exists(experiment: Experiment, machine: Machine) -> None:
    tokenizer = experiment.data.tokenizer
    if tokenizer != "auto" and not Path(tokenizer).expanduser().is_file():
        raise ConfigError(f"data.tokenizer = {tokenizer} is not a file; give a SentencePiece .model file, or `auto`")


def vocabulary_has_room(experiment: Experiment, machine: Machine) -> None:
    sentinels = getattr(experiment.objective, "sentinels", 0)
    least = reserved_pieces(sentinels, getattr(experiment.objective, "mask_piece", False)) + 1
    if experiment.data.tokenizer == "auto" and experiment.data.vocab_size < least:
        raise ConfigError(
            f"data.vocab_size = {experiment.data.vocab_size} leaves no piece for text beside {MARKS} marks, "
            f"{sentinels} sentinels and {BYTE_PIECES} bytes; set data.vocab_size to {least} or more"
        )


def run_folder_is_free(experiment: Experiment, machine: Machine) -> None:
    folder = Path(experiment.run_dir).expanduser()
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"run.dir = {experiment.run_dir}: {path} is a link to {path.readlink()}, which is not there (is a disk "
                "not mounted?); mend the link, or set another run.dir"
            )
        if path.exists():
            if not path.is_dir():
                raise ConfigError(f"run.dir = {experiment.run_dir}: {path} is a file; set run.dir to a folder")
            break
    for path in (folder / name for name in FOLDERS):
        if (path.is_symlink() or path.exists()) and not path.is_dir():
            raise ConfigError(
                f"run.dir = {experiment.run_dir}: {path} is no folder, and no link to one; remove it, or set "
                "another run.dir"
            )


def _text_exists(key: str, corpus: str) -> None:
    path = Path(corpus).expanduser()
    if not path.exists():
        raise ConfigError(f"{key} = {corpus} does not exist; give a folder, a .jsonl file, or `embedded`")
    if path.is_file() and path.suffix != ".jsonl":
        raise ConfigError(f"{key} = {corpus} is not a .jsonl file; give a folder, a .jsonl file, or `embedded`")


def _layers(experiment: Experiment) -> int:
    return experiment.model.encoder_layers + experiment.model.decoder_layers


def _or(values: Iterable[str]) -> str:
    return " or ".join(sorted(values))


def _nearest(good: list[int], wanted: int) -> str:
    """Return the one or two allowed values around `wanted`, in words."""
    below = [value for value in good if value < wanted][-1:]
    above = [value for value in good if value > wanted][:1]
    return " or ".join(str(value) for value in below + above)


CHECKS: tuple[Callable[[Experiment, Machine], None], ...] = (
    heads_divide_width,
    depth_fits_family,
    block_fits_model,
    objective_fits_family,
    document_mask_has_meaning,
    positions_fit_width,
    stages_have_layers,
    stages_divide_processes,
    zero_fits_pipeline,
    zero_fits_precision,
    offload_fits_layout,
    precision_fits_device,
    batch_equation_holds,
    schedule_fits_run,
    stop_lies_in_run,
    checkpointing_has_layers,
    wandb_is_installed,
    thresholds_rise,
    actions_agree,
    rollback_has_checkpoints,
    alarms_have_signals,
    corpora_exist,
    tokenizer_exists,
    vocabulary_has_room,
    run_folder_is_free,
)
