"""Each cross-field check: what it refuses, in one line with key, value and cure, and what it lets through."""

import pytest

from pretrain.config import checks
from pretrain.config.checks import BatchPlan, check
from pretrain.config.load import load_experiment, recipe_names
from pretrain.errors import ConfigError

SIZES = ("batch.micro_batch_size=4", "train.max_steps=300", "schedule.warmup_steps=50", "parallel.pipeline_stages=1")


def demo(*overrides):
    return load_experiment("demo", [*SIZES, *overrides])


GPT = ["model.family=decoder", "model.encoder_layers=0", "objective.kind=causal_lm"]


def message(experiment, world_size=1, device="cpu") -> str:
    with pytest.raises(ConfigError) as error:
        check(experiment, world_size, device)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_pass_on_as_many_processes_as_they_have_stages(name, tiny):
    experiment = load_experiment(name, tiny=tiny)
    plan = check(experiment, experiment.parallel.pipeline_stages, "cpu")
    assert plan.data_parallel_size == 1


@pytest.mark.parametrize(
    ("stages", "world_size", "plan"),
    [(1, 1, BatchPlan(1, 4, 1, 1)), (1, 2, BatchPlan(2, 2, 1, 2)), (2, 2, BatchPlan(1, 4, 2, 2)),
     (2, 8, BatchPlan(4, 1, 2, 8))],
)  # fmt: skip
def test_batch_plan_solves_the_batch_equation(stages, world_size, plan):
    experiment = demo(f"parallel.pipeline_stages={stages}")
    assert check(experiment, world_size, "cpu") == plan
    assert plan.micro_batches * plan.data_parallel_size * 4 == 16


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["model.num_heads=3"], 1,
         "model.hidden_size = 64 is not a multiple of model.num_heads = 3; set model.num_heads to 2 or 4"),
        (["model.decoder_layers=0"], 1,
         "model.decoder_layers = 0, but model.family = encoder_decoder has this stack; set model.decoder_layers to 1 "
         "or more"),
        (["model.family=decoder"], 1,
         "model.encoder_layers = 48, but model.family = decoder has no encoder; set model.encoder_layers=0, or another "
         "model.family"),
        ([*GPT, "objective.kind=span_denoising"], 1,
         "objective.kind = span_denoising trains model.family = encoder_decoder, not decoder; set objective.kind to "
         "causal_lm or prefix_lm"),
        (["objective.kind=masked_lm"], 1,
         "objective.kind = masked_lm trains model.family = encoder, not encoder_decoder; set objective.kind to "
         "bart_denoising or span_denoising or translation"),
        (["model.positions=rotary", "model.hidden_size=66", "model.num_heads=22"], 1,
         "model.positions = rotary turns pairs, and model.hidden_size / model.num_heads = 3 is odd; choose an even "
         "head size, or model.positions=learned"),
        (["model.positions=sinusoidal", "model.hidden_size=63", "model.num_heads=3"], 1,
         "model.positions = sinusoidal needs an even model.hidden_size, not 63; set an even one, or "
         "model.positions=learned"),
        (["parallel.pipeline_stages=3"], 4,
         "parallel.pipeline_stages = 3 does not divide the number of processes = 4; start a multiple of 3 processes, "
         "or set parallel.pipeline_stages to 2 or 4"),
        (["parallel.pipeline_stages=2"], 1, "parallel.pipeline_stages = 2 does not divide the number of processes = 1"),
        (["model.encoder_layers=1", "model.decoder_layers=1", "parallel.pipeline_stages=4"], 4,
         "parallel.pipeline_stages = 4 is more than the model's 2 layers; set parallel.pipeline_stages to 2 or less"),
        (["parallel.pipeline_stages=2", "parallel.zero_stage=2"], 2,
         "parallel.zero_stage = 2 does not go with parallel.pipeline_stages = 2 (DeepSpeed refuses that); "
         "set parallel.zero_stage=1, or parallel.pipeline_stages=1"),
        (["parallel.pipeline_stages=2", "parallel.zero_stage=3"], 2,
         "parallel.zero_stage = 3 does not go with parallel.pipeline_stages = 2 (DeepSpeed refuses that); "
         "set parallel.zero_stage=1, or parallel.pipeline_stages=1"),
        (["parallel.pipeline_stages=2", "parallel.zero_stage=0"], 2,
         "parallel.zero_stage = 0 does not go with parallel.pipeline_stages = 2 (DeepSpeed clips wrongly there); "
         "set parallel.zero_stage=1, or parallel.pipeline_stages=1"),
        (["parallel.zero_stage=0", "train.precision=bf16"], 1,
         "parallel.zero_stage = 0 does not go with train.precision = bf16 (DeepSpeed would accumulate gradients in "
         "bf16); set parallel.zero_stage=1, or train.precision=fp32"),
        (["parallel.zero_stage=0", "parallel.offload_optimizer=true"], 1,
         "parallel.offload_optimizer = true needs a ZeRO stage, and parallel.zero_stage = 0; "
         "set parallel.zero_stage=1, or parallel.offload_optimizer=false"),
        (["parallel.pipeline_stages=2", "parallel.offload_optimizer=true"], 2,
         "parallel.offload_optimizer = true does not go with parallel.pipeline_stages = 2; "
         "set parallel.offload_optimizer=false, or parallel.pipeline_stages=1"),
        (["train.precision=fp16"], 1,
         "train.precision = fp16 needs a GPU and there is none; set train.precision to bf16 or fp32"),
        (["batch.global_batch_size=18"], 2,
         "batch.global_batch_size = 18 is not a multiple of batch.micro_batch_size x data-parallel processes = 4 x 2 "
         "= 8; set batch.global_batch_size to 16 or 24, or batch.micro_batch_size to 3 or 9"),
        (["batch.global_batch_size=3"], 2,
         "= 8; set batch.global_batch_size to 8"),
        (["schedule.warmup_steps=400"], 1,
         "schedule.warmup_steps = 400 is longer than train.max_steps = 300; set schedule.warmup_steps to 300 or less"),
        (["train.stop_at_step=301"], 1,
         "train.stop_at_step = 301 lies behind train.max_steps = 300; set train.stop_at_step to 300 or less, or null"),
        (["train.activation_checkpointing=97"], 1,
         "train.activation_checkpointing = 97 is more than the model's 96 layers; set train.activation_checkpointing "
         "to 96 or less"),
        (["verdicts.token_cosine=[null,0.9]"], 1,
         "verdicts.token_cosine = [null, 0.9] has an alarm without a watch; state the pair [watch, alarm], such as "
         "[0.9, 0.9], or [null, null] for neither"),
        (["verdicts.source_use=[0.1,0.2]"], 1, "verdicts.source_use = [0.1, 0.2] would say alarm before watch"),
        (["verdicts.adam_rms=[5,2]"], 1,
         "verdicts.adam_rms = [5, 2] would say alarm before watch; state the pair [watch, alarm] with watch below "
         "alarm"),
        (["verdicts.effective_rank=[1,2]"], 1, "state the pair [watch, alarm] with watch above alarm"),
        (["policy.on_spike=[rollback,stop]"], 1,
         "policy.on_spike = [rollback, stop] cannot stop and do more; leave out stop"),
        (["policy.on_not_finite=[rollback]", "checkpoint.interval=0"], 1,
         "policy.on_not_finite has rollback, but checkpoint.interval = 0 leaves nothing to go back to; set "
         "checkpoint.interval to 1 or more"),
        (["policy.on_alarm=[scale_rate,rollback]", "checkpoint.keep_last=1"], 1,
         "policy.on_alarm has rollback, but checkpoint.keep_last = 1 keeps the newest checkpoint alone, which may hold "
         "the damage already; set checkpoint.keep_last to 2 or more"),
        (["policy.on_alarm=[stop]", "monitors.interval=0"], 1,
         "policy.on_alarm needs verdicts, but monitors.interval = 0 samples no signal; set monitors.interval to 1 or "
         "more, or policy.on_alarm=[]"),
        (["policy.alarm_signals=[adam_rsm]"], 1,
         "policy.alarm_signals: there is no verdict 'adam_rsm'; did you mean 'adam_rms'? known: adam_rms, attention"),
        (["data.train=/no/such"], 1,
         "data.train = /no/such does not exist; give a folder, a .jsonl file, or `embedded`"),
        (["data.validation=/no/such"], 1, "data.validation = /no/such does not exist; give"),
        (["data.tokenizer=/no/such.model"], 1, "data.tokenizer = /no/such.model is not a file; give a SentencePiece"),
        (["objective.kind=span_denoising", "data.vocab_size=300"], 1,
         "data.vocab_size = 300 leaves no piece for text beside 4 marks, 100 sentinels"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_with_key_value_and_cure(overrides, world_size, expected):
    assert expected in message(demo(*overrides), world_size)


@pytest.mark.parametrize(
    "overrides",
    [
        [*GPT, "model.decoder_layers=1"],
        ["model.positions=rotary", "model.hidden_size=66", "model.num_heads=33"],
        ["model.positions=learned", "model.hidden_size=63", "model.num_heads=3"],
        ["model.positions=sinusoidal", "model.hidden_size=66", "model.num_heads=22"],
        ["schedule.warmup_steps=300"],
        ["train.stop_at_step=300"],
        ["train.activation_checkpointing=96"],
        ["parallel.zero_stage=0"],
        ["parallel.zero_stage=3", "train.precision=bf16"],
        ["parallel.zero_stage=1", "parallel.offload_optimizer=true"],
        ["train.precision=bf16"],
        ["data.vocab_size=400"],
        ["verdicts.adam_rms=[2,2]"],
        ["policy.on_spike=[rollback,scale_rate]", "checkpoint.keep_last=2"],
        ["policy.on_spike=[stop]", "checkpoint.interval=0"],
        ["policy.on_outlier=[skip]", "policy.window=8", "checkpoint.interval=0", "monitors.interval=0"],
        ["policy.on_alarm=[stop]", "policy.alarm_signals=[not_finite,spike_score]"],
    ],
)
def test_what_lies_just_within_the_limits_passes(overrides):
    check(demo(*overrides), 1, "cpu")


def test_fp16_passes_on_a_gpu():
    check(demo("train.precision=fp16"), 1, "cuda")


def test_the_values_that_a_batch_message_proposes_are_valid():
    check(demo("batch.global_batch_size=24"), 2, "cpu")
    check(demo("batch.global_batch_size=18", "batch.micro_batch_size=3"), 2, "cpu")
    check(demo("batch.global_batch_size=18", "batch.micro_batch_size=9"), 2, "cpu")


def test_corpora_and_tokenizers_that_exist_pass(tmp_path):
    corpus, model = tmp_path / "corpus.jsonl", tmp_path / "pieces.model"
    corpus.write_text("{}")
    model.write_text("")
    check(demo(f"data.train={tmp_path}", f"data.validation={corpus}", f"data.tokenizer={model}"), 1, "cpu")


def test_a_corpus_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "corpus.txt").write_text("text")
    assert "corpus.txt is not a .jsonl file; give a folder" in message(demo(f"data.train={tmp_path}/corpus.txt"))


def test_a_run_folder_that_is_a_file_or_lies_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        line = message(demo(f"run.dir={folder}"))
        assert line == f"run.dir = {folder}: {tmp_path}/file is a file; set run.dir to a folder"
    check(demo(f"run.dir={tmp_path}/new/run"), 1, "cpu")


def test_every_check_function_of_the_module_is_in_the_tuple():
    functions = {value for name, value in vars(checks).items() if callable(value) and not name.startswith("_")
                 and getattr(value, "__module__", "") == checks.__name__}  # fmt: skip
    assert functions - {checks.check, checks.BatchPlan, checks.Machine} == set(checks.CHECKS)


def test_a_run_folder_may_be_a_link_to_a_folder_and_to_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    for target in ("run", "file", "nowhere", "loop"):
        (tmp_path / f"to_{target}").symlink_to(tmp_path / (f"to_{target}" if target == "loop" else target))
    check(demo(f"run.dir={tmp_path}/to_run"), 1, "cpu")
    check(demo(f"run.dir={tmp_path}/to_run/new"), 1, "cpu")
    assert f"{tmp_path}/to_file is a file; set run.dir to a folder" in message(demo(f"run.dir={tmp_path}/to_file"))
    for folder in ("to_nowhere", "to_nowhere/run"):
        line = message(demo(f"run.dir={tmp_path}/{folder}"))
        assert line.startswith(f"run.dir = {tmp_path}/{folder}: {tmp_path}/to_nowhere is a link to {tmp_path}/nowhere,")
    assert "to_loop is a link to" in message(demo(f"run.dir={tmp_path}/to_loop"))


@pytest.mark.parametrize("name", ["checkpoints", "logs", "tensorboard"])
def test_what_stands_in_the_place_of_a_run_s_own_folders_is_named(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert f"{tmp_path}/{name} is no folder, and no link to one" in message(demo(f"run.dir={tmp_path}"))
    (tmp_path / "nowhere").mkdir()
    check(demo(f"run.dir={tmp_path}"), 1, "cpu")
