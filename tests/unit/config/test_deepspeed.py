"""The merge with the DeepSpeed JSON, and every shipped JSON through DeepSpeed's own parser."""

import copy
import json
from pathlib import Path

import pytest

from pretrain.config.checks import check
from pretrain.config.deepspeed import MAX_BUCKET_ELEMENTS, decisions, deepspeed_config, load_deepspeed_json
from pretrain.config.deepspeed_keys import REFUSED, REMOVED, SECTIONS, TOP_LEVEL
from pretrain.config.load import load_experiment
from pretrain.errors import ConfigError

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
LAYOUTS = {
    "fp32": ["parallel.pipeline_stages=1"],
    "fp32-pipeline": ["parallel.pipeline_stages=2"],
    "bf16": ["parallel.pipeline_stages=1", "train.precision=bf16"],
    "bf16-zero2": ["parallel.pipeline_stages=1", "train.precision=bf16", "parallel.zero_stage=2"],
    "fp32-zero0": ["parallel.pipeline_stages=1", "parallel.zero_stage=0"],
    "bf16-zero3": ["parallel.pipeline_stages=1", "train.precision=bf16", "parallel.zero_stage=3"],
    "bf16-offload": ["parallel.pipeline_stages=1", "train.precision=bf16", "parallel.offload_optimizer=true"],
    "bf16-pipeline": ["parallel.pipeline_stages=2", "train.precision=bf16"],
    "fp16": ["parallel.pipeline_stages=1", "train.precision=fp16", "optimizer.clip_norm=0"],
}


def setting(layout="fp32", *overrides):
    """Return an experiment and its plan, one data-parallel process."""
    experiment = load_experiment("demo", ["batch.micro_batch_size=4", *LAYOUTS[layout], *overrides])
    return experiment, check(experiment, experiment.parallel.pipeline_stages, "cuda")


def message(user, layout="fp32") -> str:
    with pytest.raises(ConfigError) as error:
        deepspeed_config(*setting(layout), user)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def parse():
    """DeepSpeed's own class for its configuration; it needs no process group for one data-parallel process."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig


def test_there_are_shipped_files():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", [None, *SHIPPED], ids=lambda path: path.stem if path else "none")
def test_deepspeed_accepts_every_shipped_file_after_the_merge(path, layout, parse):
    experiment, plan = setting(layout)
    config = deepspeed_config(experiment, plan, load_deepspeed_json(path) if path else None)
    assert '"auto"' not in json.dumps(config)
    parsed = parse(copy.deepcopy(config))
    assert parsed.train_batch_size == 16
    assert parsed.train_micro_batch_size_per_gpu == 4
    assert parsed.gradient_accumulation_steps == 4
    assert parsed.gradient_clipping == experiment.optimizer.clip_norm
    assert parsed.zero_optimization_stage == experiment.parallel.zero_stage
    assert parsed.bfloat16_config.enabled == (experiment.train.precision == "bf16")
    assert parsed.float16_config.enabled == (experiment.train.precision == "fp16")
    assert parsed.zero_config.overlap_comm is False
    stated = path is not None and path.stem in ("zero2", "zero3")  # these files overrule the default
    assert parsed.zero_config.contiguous_gradients is (stated or experiment.parallel.zero_stage >= 2)
    device = "cpu" if experiment.parallel.offload_optimizer else "none"
    assert parsed.zero_config.offload_optimizer.device == device
    assert parsed.pipeline["use_reentrant"] is False
    assert parsed.grad_accum_dtype == ("fp32" if experiment.train.precision == "bf16" else None)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_say_auto_where_the_experiment_decides(path):
    given = load_deepspeed_json(path)
    for key in decisions(*setting("bf16")):
        section, _, name = key.partition(".")
        value = given.get(section, "auto")
        assert (value.get(name, "auto") if name and isinstance(value, dict) else value) == "auto", key


def test_the_tables_cover_every_key_that_the_installed_deepspeed_reads(parse):
    class Recorder(dict):
        asked: set[str] = set()  # noqa: RUF012

        def __contains__(self, key):
            self.asked.add(key)
            return super().__contains__(key)

        def get(self, key, default=None):
            self.asked.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            self.asked.add(key)
            return super().__getitem__(key)

        def keys(self):
            return self

    parse(Recorder(train_batch_size=4))
    assert Recorder.asked >= TOP_LEVEL
    assert Recorder.asked <= TOP_LEVEL | set(REFUSED) | set(REMOVED)


def test_the_tables_of_sections_match_the_installed_deepspeed(parse):
    parsed = parse({"train_batch_size": 4})
    models = {
        "zero_optimization": parsed.zero_config,
        "bf16": parsed.bfloat16_config,
        "fp16": parsed.float16_config,
    }
    for section, model in models.items():
        names = {field.alias or name for name, field in type(model).model_fields.items()}
        refused = {key.partition(".")[2] for key in REFUSED if key.startswith(section + ".")}
        assert SECTIONS[section] == names - refused
    plain = {
        "activation_checkpointing": parsed.activation_checkpointing_config,
        "flops_profiler": parsed.flops_profiler_config,
    }
    for section, config in plain.items():
        assert SECTIONS[section] == set(vars(config))


def test_deepspeed_itself_refuses_the_keys_listed_as_removed(parse):
    from deepspeed.runtime.config import DeepSpeedConfigError

    for key in REMOVED:
        section, _, name = key.partition(".")
        with pytest.raises(DeepSpeedConfigError):
            parse({"train_batch_size": 4, section: {name: 1} if name else {}})


@pytest.mark.parametrize("key", sorted(REMOVED))
def test_removed_keys_are_one_clear_line(key):
    section, _, name = key.partition(".")
    assert message({section: {name: 2} if name else {}}).startswith(
        f"DeepSpeed JSON: {key} was removed from DeepSpeed; delete it ("
    )


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_keys_that_cannot_be_used_are_one_clear_line(key):
    section, _, name = key.partition(".")
    assert message({section: {name: {}} if name else {"type": "Adam"}}).startswith(
        f"DeepSpeed JSON: {key} cannot be set here; delete it ("
    )


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"train_batch_size": 32}, 'train_batch_size = 32, but the experiment says 16 (batch.global_batch_size); '
                                   'write train_batch_size = "auto" in the JSON'),
        ({"train_micro_batch_size_per_gpu": 1}, "says 4 (batch.micro_batch_size)"),
        ({"gradient_accumulation_steps": 1}, "says 4 (the batch equation)"),
        ({"gradient_clipping": 0.5}, "says 1.0 (optimizer.clip_norm)"),
        ({"bf16": {"enabled": True}}, "bf16.enabled = true, but the experiment says false (train.precision)"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = true, but the experiment says false (train.precision)"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage = 2, but the experiment says 1 (parallel.zero"),
        ({"pipeline": {"use_reentrant": True}}, "pipeline.use_reentrant = true, but the experiment says false"),
        ({"train_batchsize": 4}, "unknown key 'train_batchsize'; did you mean 'train_batch_size'?"),
        ({"zero_optimization": {"overlap_com": True}},
         "unknown key 'zero_optimization.overlap_com'; did you mean 'zero_optimization.overlap_comm'?"),
        ({"flops_profiler": {"step": 1}}, "unknown key 'flops_profiler.step'; "),
        ({"qqqqq": 4}, "unknown key 'qqqqq'; delete it"),
        ({"zero_optimization": True}, "zero_optimization = true is not an object"),
    ],
)  # fmt: skip
def test_conflicts_and_unknown_keys_are_one_line(user, expected):
    assert expected in message(user)


def test_literals_equal_to_the_experiment_and_whole_auto_sections_pass():
    user = {"train_batch_size": 16, "gradient_clipping": 1, "zero_optimization": "auto", "bf16": {"enabled": False}}
    assert deepspeed_config(*setting(), user) == deepspeed_config(*setting())


def test_knobs_of_the_engine_pass_through_and_overrule_defaults():
    user = {
        "steps_per_print": 7,
        "communication_data_type": "bf16",
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "zero_optimization": {"reduce_bucket_size": 123, "overlap_comm": True, "stage3_max_live_parameters": "auto"},
        "fp16": {"loss_scale": 0, "enabled": "auto"},
    }
    before = copy.deepcopy(user)
    config = deepspeed_config(*setting("bf16"), user)
    assert user == before
    assert config["steps_per_print"] == 7
    assert config["communication_data_type"] == "bf16"
    assert config["comms_logger"] == {"enabled": True, "prof_ops": ["all_reduce"]}
    assert config["zero_optimization"]["reduce_bucket_size"] == 123
    assert config["zero_optimization"]["overlap_comm"] is True
    assert "stage3_max_live_parameters" not in config["zero_optimization"]
    assert config["fp16"] == {"loss_scale": 0, "enabled": False}


def test_bf16_keeps_fp32_masters_accumulation_and_reduction():
    config = deepspeed_config(*setting("bf16"))
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert config["bf16"]["bf16_master_weights_and_grads"] is False
    assert "grad_accum_dtype" in message({"data_types": {"grad_accum_dtype": "bf16"}}, "bf16")


def test_buckets_fit_the_model_and_are_bounded():
    small = deepspeed_config(*setting("fp32", "data.vocab_size=4096"))["zero_optimization"]
    assert small["reduce_bucket_size"] == small["allgather_bucket_size"]
    assert 4_000_000 < small["reduce_bucket_size"] < 8_000_000
    large = deepspeed_config(*setting("fp32", "model.hidden_size=1024", "model.ffn_size=4096"))
    assert large["zero_optimization"]["reduce_bucket_size"] == MAX_BUCKET_ELEMENTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n  "bf16": {\n}', "ds.json:3: broken JSON at column 2"),
        ('{"a": 1, "a": 2}', "ds.json: key 'a' stands twice in one object"),
        ("[1]", "ds.json:1: a DeepSpeed JSON is an object {...}, not list"),
        ("", "ds.json:1: broken JSON"),
    ],
)
def test_broken_files_are_one_line_with_file(text, expected, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_deepspeed_json(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: No such file or directory; give a JSON file such as"):
        load_deepspeed_json(tmp_path / "none.json")
