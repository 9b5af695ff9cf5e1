"""The one place that puts an experiment's parts together."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.analysis.plan import plan_text
from pretrain.analysis.plan_model import Sizes, total_parameters
from pretrain.checkpoint.callback import Checkpoints
from pretrain.checkpoint.continuity import Continuity
from pretrain.checkpoint.restore import changed_keys, fill_weights, newest_good, resume, start_anew
from pretrain.config.checks import BatchPlan, check
from pretrain.config.deepspeed import deepspeed_config
from pretrain.config.load import to_yaml
from pretrain.config.schema import Experiment
from pretrain.data.loader import BatchLoader
from pretrain.data.outlook import outlook
from pretrain.data.prepare import PreparedData, prepare
from pretrain.errors import EXIT_DONE, CheckpointError, FolderLost, WriteFailed
from pretrain.launch.environment import RankEnvironment, process_threads
from pretrain.launch.parents import LauncherChain
from pretrain.models.layers import ModelSpec
from pretrain.models.registry import FAMILIES
from pretrain.monitors.alerts import Verdicts
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.every_signal import every_signal
from pretrain.monitors.metrics import Metrics, Summary, summary_line
from pretrain.monitors.policy import Policy
from pretrain.monitors.probe import Probe
from pretrain.monitors.progress_bar import ProgressBar
from pretrain.monitors.summaries import StepScalars
from pretrain.monitors.tensorboard import TensorBoard
from pretrain.monitors.weights_and_biases import WeightsAndBiases
from pretrain.parallel import collectives, process_group
from pretrain.parallel.build import build_engine
from pretrain.resilience.limits import BUILD, MEETING
from pretrain.resilience.orphan import OrphanWatch
from pretrain.resilience.signals import SignalStop
from pretrain.resilience.watchdog import Watchdog
from pretrain.schedules.registry import SCHEDULES
from pretrain.state.reader import Checkpoint, complete_checkpoints, has_checkpoint, resolve_checkpoint
from pretrain.state.run_files import CHECKPOINTS, CONFIG, DEEPSPEED, LOGS, TOKENIZER, read_summary, tells_of_saves
from pretrain.state.whole import Judgement
from pretrain.state.writer import put_back
from pretrain.training.callback import Callback
from pretrain.training.canary import canary
from pretrain.training.evaluation import Evaluation
from pretrain.training.folder_watch import FolderWatch
from pretrain.training.loop import Trainer
from pretrain.training.run_folder import RunFolder


@dataclass(frozen=True)
class Request:
    """What the command line asks for, beside the experiment."""

    resume: str = "auto"
    """auto: go on if there is a checkpoint; never: refuse if there is one; must: refuse if there is none."""
    init_from: str | None = None
    """A checkpoint whose weights to start from, with a fresh optimizer at step 0."""
    deepspeed: dict[str, Any] | None = None
    """The user's DeepSpeed JSON."""


@dataclass(frozen=True)
class Plan:
    """A checked experiment: all that can be known before any process group starts."""

    experiment: Experiment
    request: Request
    batch: BatchPlan
    deepspeed: dict[str, Any]
    data: PreparedData
    spec: ModelSpec

    @property
    def tokens_per_sample(self) -> int:
        return self.data.objective.source_length + self.data.objective.target_length


def plan(
    experiment: Experiment,
    request: Request,
    environment: RankEnvironment,
    quiet: bool,
    folder: RunFolder | None = None,
) -> Plan:
    """Check everything that can be wrong, then prepare the data.

    Args:
        quiet: no progress bar.
        folder: the run's, which is checked and, where it exists, taken; None if nothing will be written to it.

    Raises:
        UserError: one line that names what is wrong and the cure.
    """
    batch = check(experiment, environment.world_size, process_group.accelerator())
    deepspeed = deepspeed_config(experiment, batch, request.deepspeed)
    if folder is not None:
        if folder.path.exists():  # else `train` makes it: what is refused before leaves no folder behind
            folder.acquire()
            if folder.writes:
                put_back(folder.checkpoints)
        if problem := session_problem(experiment, request, judges=folder.writes):
            raise CheckpointError(problem)
    check_init_from(experiment, request)
    data = prepare(experiment, quiet=quiet)
    spec, _ = model_spec(experiment, data.tokenizer.vocab_size, data.objective)
    return Plan(experiment, request, batch, deepspeed, data, spec)


def dry_run(experiment: Experiment, request: Request, environment: RankEnvironment) -> str:
    """All that `--dry-run` prints. Nothing is built and nothing written.

    Raises:
        UserError: what `plan` would refuse, as far as it is seen without reading the text; not what concerns the run
            in the folder.
    """
    batch = check(experiment, environment.world_size, process_group.accelerator())
    deepspeed_config(experiment, batch, request.deepspeed)
    check_init_from(experiment, request)
    data = outlook(experiment)
    spec, sizes = model_spec(experiment, data.vocab_size, data.objective)
    ready = f"to be built in {experiment.run.cache}: {', '.join(data.missing)}" if data.missing else "ready"
    text = f"{plan_text(experiment, spec, batch, sizes)}\n\ndata        {ready}"
    if problem := session_problem(experiment, request):
        text += f"\nremark      training would be refused: {problem}"
    return text


def model_spec(experiment: Experiment, pieces: int, objective: Any) -> tuple[ModelSpec, Sizes]:
    """The model's descriptors and sizes for a tokenizer of so many pieces and an objective."""
    multiple = experiment.data.pad_vocab_to
    sizes = Sizes(objective.source_length, objective.target_length, -(-pieces // multiple) * multiple)
    family = FAMILIES[experiment.model.family]
    lengths = sizes.source, sizes.target
    return family(experiment.model, sizes.vocabulary, *lengths, segmented=objective.segmented), sizes


def session_problem(experiment: Experiment, request: Request, judges: bool = True) -> str:
    """What would lose or mix up the run in the folder, as one line; empty if all is well.

    Args:
        judges: whether this rank holds the folder's lock. On another one a checkpoint may still be on its way from a
            session that is ending.
    """
    folder = Path(experiment.run_dir)
    found = has_checkpoint(folder / CHECKPOINTS)
    if request.resume == "must" and not found and judges:
        return f"--resume must: {folder}/checkpoints holds no checkpoint; check run.dir, or use auto"
    if not found and judges and tells_of_saves(folder):
        return (
            f"{folder}/checkpoints holds no checkpoint, but events.jsonl tells of saves; put them back (is a disk not "
            "mounted?), or set another run.dir"
        )
    if request.resume == "never" and found:
        return f"--resume never: {folder} holds a run; set another run.dir, or remove it"
    if found and (changed := changed_keys(folder, experiment)):
        return (
            f"{changed[0]} differs from the run in {folder}"
            + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
            + "; set it back, or set another run.dir (with --init-from to keep the weights)"
        )
    return ""


def check_init_from(experiment: Experiment, request: Request) -> None:
    """Look at the weights to start from; the same command again resumes and needs them no more.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    if request.init_from is not None and not has_checkpoint(Path(experiment.run_dir) / CHECKPOINTS):
        Checkpoint(resolve_checkpoint(Path(request.init_from)), verify="sizes")


def use_threads(experiment: Experiment, environment: RankEnvironment) -> None:
    """CPU threads of this process: as stated, or its share of the cores it may run on."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(experiment.train.threads or process_threads(environment, os.environ, cores))


def trainer(plan: Plan, resumes: bool, callbacks: Sequence[Callback], folder: RunFolder) -> Trainer:
    """Build the engine and the loop over it. Collective: on every rank, within the process group.

    Args:
        resumes: a checkpoint will fill the weights.
    """
    experiment = plan.experiment
    weights_follow = resumes or plan.request.init_from is not None
    engine = build_engine(experiment, plan.spec, plan.deepspeed, weights_follow=weights_follow)
    loader = BatchLoader(
        plan.data.train,
        experiment.train.seed,
        experiment.batch.global_batch_size,
        experiment.batch.micro_batch_size,
        engine.data_parallel_rank,
        engine.data_parallel_size,
        experiment.data.skip_ranges,
    )
    schedule = SCHEDULES.build(experiment.schedule, experiment.train.max_steps)
    return Trainer(experiment, plan.spec, engine, loader, schedule, plan.tokens_per_sample, folder, callbacks)


def enter(plan: Plan, session: Trainer, resumes: bool) -> None:
    """Put the session where it starts: the newest good checkpoint, other weights, or step 0. Collective."""
    folder = session.folder
    if resumes:
        checkpoint, problems = newest_good(folder.checkpoints)
        for problem in problems:
            folder.event("alert", checkpoint.step, reason=f"damaged checkpoint set aside: {problem}")
            if folder.writes:
                print(f"damaged checkpoint set aside: {problem}", file=sys.stderr, flush=True)
        resume(session, checkpoint)
        folder.event("resume", session.progress.step, checkpoint=str(checkpoint.folder), **layout(plan))
        return
    if plan.request.init_from is not None:
        source = resolve_checkpoint(Path(plan.request.init_from))
        fill_weights(session.engine, Checkpoint(source), moments=False)
    start_anew(folder)
    folder.event("start", 0, init_from=plan.request.init_from, **layout(plan))


def train(
    plan: Plan, environment: RankEnvironment, launcher: LauncherChain, folder: RunFolder, watchdog: Watchdog
) -> int:
    """Start the process group, train, and leave; returns the exit code of why the session ended.

    Args:
        launcher: who started this rank, as it was when the rank began.
        folder: the run's.
        watchdog: has been watching over this rank's start.
    """
    folder.acquire()
    log = folder.path / LOGS / f"rank_{environment.rank}.log"
    signals = SignalStop()
    try:
        watchdog.now(MEETING)
        process_group.start(environment, log)
        watchdog.joined()
        # Rank 0 holds the lock: what it sees in the folder counts for all.
        state = collectives.share_text(folder_state(plan.experiment, folder))
        if state == DONE:
            if folder.writes:
                print(f"{folder.path}: done; set a later last step to go on, or another run.dir to start anew")
                say_result(folder)
            return EXIT_DONE
        collectives.on_first(folder.check_room, not_written)
        watchdog.now(BUILD)
        return run_session(plan, state == RESUMES, [watchdog, signals, OrphanWatch(launcher)], folder, log)
    finally:
        process_group.end()


def run_session(plan: Plan, resumes: bool, guards: Sequence[Callback], folder: RunFolder, log: Path) -> int:
    """Build, enter and train within the process group; returns the exit code of why the session ended.

    Args:
        resumes: the folder holds a checkpoint to go on from.
        guards: callbacks that come before all others.
        log: of this rank, for what libraries print.
    """
    texts = {CONFIG: to_yaml(plan.experiment).encode(), TOKENIZER: Path(plan.data.tokenizer.path).read_bytes()}
    with ExitStack() as held:  # whatever raises: threads that nobody ends would keep this process alive
        with process_group.quiet(log):
            if plan.experiment.train.canary:
                check_layout(plan, folder)
            chosen = [*guards, *callbacks(plan, texts)]
            session = held.enter_context(trainer(plan, resumes, chosen, folder))
            enter(plan, session, resumes)
        folder.write(CONFIG, texts[CONFIG].decode())
        folder.write(TOKENIZER, texts[TOKENIZER])
        folder.write(DEEPSPEED, json.dumps(plan.deepspeed, indent=1) + "\n")
        complete(folder)
        stop = session.run()
    folder.event("end", session.progress.step, reason=stop.reason, exit_code=stop.exit_code)
    complete(folder)
    if folder.writes:
        print(f"{folder.path}: ended at step {session.progress.step} ({stop.reason})", flush=True)
        say_result(folder)
    return stop.exit_code


def complete(folder: RunFolder) -> None:
    """All that was written is on the disk when this returns. Collective.

    Raises:
        FolderLost: on every rank, if run.dir is another folder now.
        WriteFailed: on every rank, if it cannot be written.
    """
    collectives.on_first(folder.check, lambda reason: FolderLost(f"{reason}; set run.dir to the folder to go on in"))
    collectives.on_first(folder.complete, not_written)


def not_written(reason: str) -> WriteFailed:
    """What ends a session that cannot write to its folder."""
    return WriteFailed(f"run.dir: {reason}; see to its disk and its rights, then give the same command again")


def check_layout(plan: Plan, folder: RunFolder) -> None:
    """Stop before training in a layout that computes something else than one process does. Collective.

    Raises:
        CanaryFailed: it does.
    """

    def spec_of(experiment: Experiment) -> ModelSpec:
        return model_spec(experiment, plan.data.tokenizer.vocab_size, plan.data.objective)[0]

    steps = canary(plan.experiment, plan.batch, plan.deepspeed, plan.data.train, spec_of)
    folder.event("canary", 0, reason="this layout computes what one process does", losses=[step.loss for step in steps])


DONE, RESUMES, STARTS = "done", "resumes", "starts"


def folder_state(experiment: Experiment, folder: RunFolder) -> str:
    """What this session finds: a run that is at its last step and summed up, one to go on with, or nothing."""
    if not has_checkpoint(folder.checkpoints):
        return STARTS
    try:
        newest = Judgement(complete_checkpoints(folder.checkpoints)[0], "presence")
        whole = next(newest.problems(), None) is None
        done = whole and read_summary(folder.path)["step"] >= newest.manifest.step >= experiment.train.last_step
    except (CheckpointError, OSError, LookupError, TypeError):
        return RESUMES
    return DONE if done else RESUMES


def probe(plan: Plan) -> Probe:
    """The fixed samples that signals are measured on."""
    experiment = plan.experiment
    return Probe(plan.data.validation, experiment.monitors.probe_samples, experiment.batch.micro_batch_size)


def say_result(folder: RunFolder) -> None:
    """The run's figures on one line of the terminal."""
    print(f"{folder.path}: {summary_line(read_summary(folder.path))}", flush=True)


def layout(plan: Plan) -> dict[str, Any]:
    """How this session lies over processes, for manifest and events."""
    return {
        "processes": plan.batch.world_size,
        "pipeline_stages": plan.batch.pipeline_stages,
        "data_parallel_size": plan.batch.data_parallel_size,
        "micro_batches": plan.batch.micro_batches,
        "zero_stage": plan.experiment.parallel.zero_stage,
        "precision": plan.experiment.train.precision,
    }


def callbacks(plan: Plan, texts: dict[str, bytes]) -> list[Callback]:
    """In the order in which they run; what saves comes last."""
    monitors = plan.experiment.monitors
    metrics, evaluation = Metrics(monitors.spike_window), Evaluation(plan.data.validation)
    chosen: list[Callback] = [FolderWatch(), Continuity(), metrics, evaluation]
    depth: DepthSignals | None = None
    verdicts: Verdicts | None = None
    saves = Checkpoints(layout(plan), texts)
    if monitors.interval:
        depth = DepthSignals(every_signal(plan.experiment, plan.spec), probe(plan))
        verdicts = Verdicts(depth, metrics, evaluation)
        chosen += [depth, verdicts]
    chosen.append(Policy(plan.experiment.policy, saves, verdicts))
    if collectives.is_first():
        scalars = StepScalars(metrics, evaluation, depth)
        if monitors.tensorboard:
            chosen.append(TensorBoard(scalars))
        if monitors.wandb:
            chosen.append(WeightsAndBiases(scalars))
        chosen.append(ProgressBar(evaluation, verdicts))
    chosen.append(Summary(evaluation, plan.data.unigram_entropy, total_parameters(plan.spec)))
    chosen.append(saves)
    return chosen
