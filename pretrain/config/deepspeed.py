"""The DeepSpeed JSON of an experiment: what the experiment decides, defaults, and the user's engine knobs on top.

As with Hugging Face's integration, a JSON file says "auto" (or nothing) where the experiment decides. DeepSpeed itself
is not imported here: everything wrong is found before any process group starts.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.config.checks import BatchPlan
from pretrain.config.deepspeed_keys import REFUSED, REMOVED, SECTIONS, TOP_LEVEL
from pretrain.config.messages import nearest
from pretrain.config.schema import Experiment
from pretrain.errors import ConfigError

AUTO = "auto"
# DeepSpeed's own default of 5e8 elements allocates 2 GB a process in fp32, whatever the model's size.
MAX_BUCKET_ELEMENTS = 50_000_000
MIN_BUCKET_ELEMENTS = 1_000_000
NEVER = 1_000_000_000  # steps between DeepSpeed's own progress lines

Json = dict[str, Any]


class Decision(NamedTuple):
    """A value that the experiment decides, and the key that does so, for messages."""

    value: Any
    source: str


def deepspeed_config(experiment: Experiment, plan: BatchPlan, user: Json | None = None) -> Json:
    """Return the complete DeepSpeed configuration.

    Args:
        experiment: decides batch sizes, precision, clipping, ZeRO stage and pipeline.
        plan: the batch equation's solution, from `checks.check`.
        user: the parsed JSON of `--deepspeed_config`; not changed.

    Raises:
        ConfigError: a key is unknown, removed from DeepSpeed or not usable here, or says other than the experiment.
    """
    given = copy.deepcopy(user or {})
    _check_keys(given)
    decided = decisions(experiment, plan)
    knobs = _flatten(given)
    for key, (value, source) in decided.items():
        literal = knobs.pop(key, AUTO)
        if literal != value and not _is_auto(literal):
            raise ConfigError(
                f"DeepSpeed JSON: {key} = {json.dumps(literal)}, but the experiment says {json.dumps(value)} "
                f"({source}); write {key} = {json.dumps(AUTO)} in the JSON, or change the experiment"
            )
    knobs = {key: value for key, value in knobs.items() if not _is_auto(value)}
    flat = defaults(experiment) | knobs | {key: decision.value for key, decision in decided.items()}
    return _unflatten(flat)


def decisions(experiment: Experiment, plan: BatchPlan) -> dict[str, Decision]:
    """Return dotted key -> what the experiment decides about the engine."""
    train, bf16 = experiment.train, experiment.train.precision == "bf16"
    decided = {
        "train_batch_size": Decision(experiment.batch.global_batch_size, "batch.global_batch_size"),
        "train_micro_batch_size_per_gpu": Decision(experiment.batch.micro_batch_size, "batch.micro_batch_size"),
        "gradient_accumulation_steps": Decision(plan.micro_batches, "the batch equation"),
        "gradient_clipping": Decision(experiment.optimizer.clip_norm, "optimizer.clip_norm"),
        "gradient_allreduce_op": Decision("mean", "the normaliser of the loss"),
        "managed_gradient_accumulation": Decision(True, "the batch equation"),
        "fp16.enabled": Decision(train.precision == "fp16", "train.precision"),
        "bf16.enabled": Decision(bf16, "train.precision"),
        "zero_optimization.stage": Decision(experiment.parallel.zero_stage, "parallel.zero_stage"),
        "zero_optimization.offload_optimizer": Decision(
            {"device": "cpu", "pin_memory": True} if experiment.parallel.offload_optimizer else {"device": "none"},
            "parallel.offload_optimizer",
        ),
        "zero_optimization.compute_grad_norm": Decision(True, "optimizer.clip_norm"),
        "zero_allow_untested_optimizer": Decision(True, "the optimizer section"),
        "zero_force_ds_cpu_optimizer": Decision(False, "the optimizer section"),
        # Reentrant checkpointing breaks where a stage holds the encoder-decoder border.
        "pipeline.use_reentrant": Decision(False, "train.activation_checkpointing"),
        "pipeline.activation_checkpoint_interval": Decision(0, "train.activation_checkpointing, done by the layers"),
        "pipeline.stages": Decision(plan.pipeline_stages, "parallel.pipeline_stages"),
    }
    if bf16:
        masters = "train.precision: fp32 masters and accumulation"
        decided |= {
            "data_types.grad_accum_dtype": Decision("fp32", masters),
            "bf16.bf16_master_weights_and_grads": Decision(False, masters),
            "bf16.bf16_optimizer_states": Decision(False, masters),
            # Accumulation from hooks would count a stage's parameters twice beside the pipeline's own.
            "bf16.immediate_grad_update": Decision(False, masters),
            # The same in fp32 and at every ZeRO stage: a step whose gradient norm is not finite is skipped.
            "bf16.check_grad_overflow": Decision(True, "skipping of steps that are not finite"),
        }
    elif train.precision == "fp16":
        decided["fp16.fp16_master_weights_and_grads"] = Decision(False, "train.precision: fp32 masters")
    return decided


def defaults(experiment: Experiment) -> Json:
    """Return dotted key -> value of the knobs that differ from DeepSpeed's own defaults; a JSON may overrule them."""
    bucket = bucket_elements(experiment)
    values: Json = {
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
        "zero_optimization.reduce_bucket_size": bucket,
        "zero_optimization.allgather_bucket_size": bucket,
        # ZeRO-1 would copy each of 21,000 gradients of 1000 layers into a bucket: 13% of a step there.
        "zero_optimization.contiguous_gradients": experiment.parallel.zero_stage >= 2,
        "zero_optimization.overlap_comm": False,
    }
    if experiment.parallel.zero_stage == 3:
        values |= {
            # Norms and biases stay on every rank; DeepSpeed's own default would keep all of a narrow model there.
            "zero_optimization.stage3_param_persistence_threshold": 10 * experiment.model.hidden_size,
            # Weights are let go after a layer's forward, to be fetched again for its backward.
            "zero_optimization.stage3_max_reuse_distance": 0,
            "zero_optimization.stage3_prefetch_bucket_size": bucket,
        }
    if experiment.train.precision == "bf16":
        values["communication_data_type"] = "fp32"  # or gradients would be summed over processes in bf16
    return values


def bucket_elements(experiment: Experiment) -> int:
    """Return the size of ZeRO's buckets: enough for all parameters of a small model, bounded for a large one."""
    model, data = experiment.model, experiment.data
    attention, ffn = 4 * model.hidden_size**2, 2 * model.hidden_size * model.ffn_size
    layers = model.encoder_layers * (attention + ffn) + model.decoder_layers * (2 * attention + ffn)
    embeddings = 2 * data.vocab_size * model.hidden_size
    return max(MIN_BUCKET_ELEMENTS, min(layers + embeddings, MAX_BUCKET_ELEMENTS))


def load_deepspeed_json(path: str | Path) -> Json:
    """Return the parsed JSON file of `--deepspeed_config`.

    Raises:
        ConfigError: naming file and line if it cannot be read, is not JSON, or states a key twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep; give a JSON file such as ds_configs/default.json") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"DeepSpeed JSON {path}: {error.strerror}; give a JSON file such as ds_configs/default.json"
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a DeepSpeed JSON is an object {{...}}, not {type(document).__name__}")
    return document


def _unique(pairs: list[tuple[str, Any]], path: Path) -> Json:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{path}: key {key!r} stands twice in one object; remove one")
    return dict(pairs)


def _check_keys(given: Json) -> None:
    """Raise ConfigError for a key that DeepSpeed removed, that cannot be used here, or that does not exist."""
    for key, value in given.items():
        _check_key(key, key, TOP_LEVEL)
        if key in SECTIONS and isinstance(value, dict):
            for name in value:
                _check_key(f"{key}.{name}", name, SECTIONS[key])
        elif key in SECTIONS and not _is_auto(value):
            raise ConfigError(f"DeepSpeed JSON: {key} = {json.dumps(value)} is not an object; write {{...}}")


def _check_key(key: str, name: str, known: frozenset[str]) -> None:
    if key in REMOVED:
        raise ConfigError(f"DeepSpeed JSON: {key} was removed from DeepSpeed; delete it ({REMOVED[key]})")
    if key in REFUSED:
        raise ConfigError(f"DeepSpeed JSON: {key} cannot be set here; delete it ({REFUSED[key]})")
    if name not in known:
        near = nearest(name, sorted(known))
        section = key.removesuffix(name)
        hint = f"did you mean {section + near!r}?" if near else "delete it"
        raise ConfigError(f"DeepSpeed JSON: unknown key {key!r}; {hint}")


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def _flatten(given: Json) -> Json:
    """Return dotted keys for what lies in the known sections; deeper values stay whole."""
    flat: Json = {}
    for key, value in given.items():
        if key in SECTIONS and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _unflatten(flat: Json) -> Json:
    nested: Json = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return nested
