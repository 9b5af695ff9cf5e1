"""Recipes, bases, tiny sections and overrides."""

from pathlib import Path

import pytest

from pretrain.config.load import RECIPES, load_experiment, merge, recipe_names, to_yaml
from pretrain.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Write a recipe file and return its path."""

    def write_file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def message(recipe, overrides=(), **options) -> str:
    with pytest.raises(ConfigError) as error:
        load_experiment(str(recipe), list(overrides), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_are_named_after_their_file(name, tiny):
    assert load_experiment(name, tiny=tiny).name == (f"{name}-tiny" if tiny else name)


@pytest.mark.parametrize("name", recipe_names())
def test_head_comment_holds_command_source_and_expected_result(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--recipe {name}" in head
    assert "# Source:" in head
    assert "# Expected:" in head


@pytest.mark.parametrize("name", recipe_names())
def test_tiny_keeps_block_objective_and_ties_and_is_smaller(name):
    full, tiny = load_experiment(name), load_experiment(name, tiny=True)
    assert tiny.model.block == full.model.block
    assert tiny.objective == full.objective
    assert tiny.model.tie_embeddings == full.model.tie_embeddings
    assert tiny.parallel.pipeline_stages <= min(2, full.parallel.pipeline_stages), "two processes suffice"
    assert depth(tiny) < depth(full)
    assert tiny.train.max_steps < full.train.max_steps


def depth(experiment):
    return experiment.model.encoder_layers + experiment.model.decoder_layers


def test_demo_post_ln_differs_from_the_demo_in_the_block_only():
    demo, post_ln = load_experiment("demo"), load_experiment("demo_post_ln")
    assert post_ln.model.block.kind == "post_ln"
    assert post_ln.model_copy(update={"name": "demo", "model": demo.model}) == demo
    assert post_ln.model.model_copy(update={"block": demo.model.block}) == demo.model


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", recipe_names())
def test_the_yaml_of_an_experiment_loads_to_an_equal_one(name, tiny, write):
    overrides = ["schedule.kind=wsd", "optimizer.eps=1e-12", "train.stop_at_step=3", "optimizer.no_decay=[]"]
    for given in ([], overrides):
        experiment = load_experiment(name, given, tiny=tiny)
        assert load_experiment(write("config.yaml", to_yaml(experiment))) == experiment


def test_overrides_are_the_last_layer_and_typed_as_yaml():
    experiment = load_experiment(
        "demo",
        ["optimizer.lr=5e-4", "optimizer.betas=[0.8,0.9]", "train.max_steps=200", "train.max_steps=100",
         "monitors.tensorboard=false", "data.validation=null", "run.dir=a=b", "data.glob=*.py", "train.stop_at_step=7"],
        tiny=True,
    )  # fmt: skip
    assert experiment.optimizer.lr == 5e-4
    assert experiment.optimizer.betas == (0.8, 0.9)
    assert experiment.train.max_steps == 100
    assert experiment.monitors.tensorboard is False
    assert experiment.data.validation is None
    assert experiment.run.dir == "a=b"
    assert experiment.data.glob == "*.py"
    assert experiment.train.stop_at_step == 7
    assert experiment.model.hidden_size == 32


def test_scientific_notation_is_a_number_in_recipes(write):
    assert load_experiment(write("r.yaml", "optimizer: {lr: 2e-3, eps: 1E-9}")).optimizer.lr == 2e-3


def test_a_base_is_found_by_path_beside_the_file_and_by_name(write):
    write("first.yaml", "base: demo\nname: first_name\nmodel: {ffn_size: 256}\ntiny: {train: {max_steps: 5}}")
    second = write("second.yaml", "base: first.yaml\nmodel: {encoder_layers: 7}\ntiny: {train: {seed: 9}}")
    experiment = load_experiment(second)
    assert experiment.name == "second"
    assert (experiment.model.encoder_layers, experiment.model.ffn_size, experiment.model.decoder_layers) == (7, 256, 48)
    tiny = load_experiment(second, tiny=True)
    assert (tiny.train.max_steps, tiny.train.seed, tiny.model.ffn_size) == (5, 9, 64)


def test_a_changed_kind_drops_the_keys_of_the_previous_one(write):
    recipe = write("r.yaml", "schedule: {kind: reciprocal_sqrt, warmup_steps: 5, timescale: 7}")
    assert load_experiment(recipe, ["schedule.timescale=9"]).schedule.warmup_steps == 5
    changed = load_experiment(recipe, ["schedule.final_factor=0.5", "schedule.kind=cosine"]).schedule
    assert changed.model_dump() == {"kind": "cosine", "warmup_steps": 0, "final_factor": 0.5}
    assert load_experiment(recipe, ["schedule.kind=reciprocal_sqrt"]).schedule.timescale == 7


def test_a_changed_kind_drops_the_keys_of_an_unstated_default_kind(write):
    write("base.yaml", "schedule: {warmup_steps: 5, final_factor: 0.1}")
    child = write("child.yaml", "base: base.yaml\nschedule: {kind: constant}")
    assert load_experiment(child).schedule.model_dump() == {"kind": "constant", "warmup_steps": 0}


def test_a_changed_kind_is_seen_deep_in_a_section():
    below = {"model": {"hidden_size": 8, "block": {"kind": "a", "alpha": 1, "inner": {"kind": "x", "k": 1}}}}
    assert merge(below, {"model": {"block": {"kind": "b"}}}) == {"model": {"hidden_size": 8, "block": {"kind": "b"}}}
    inner = merge(below, {"model": {"block": {"inner": {"kind": "y"}}}})["model"]["block"]
    assert inner == {"kind": "a", "alpha": 1, "inner": {"kind": "y"}}


def test_merging_changes_none_of_its_arguments():
    below, above = {"a": {"kind": "x", "b": [1]}}, {"a": {"kind": "y"}}
    merge(below, above)
    assert below == {"a": {"kind": "x", "b": [1]}}
    assert above == {"a": {"kind": "y"}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("trian.max_steps=3", "unknown key 'trian.max_steps'; did you mean 'train.max_steps'?"),
        ("max_steps=3", "unknown key 'max_steps'; did you mean 'train.max_steps'?"),
        ("zzz=1", "unknown key 'zzz'; keys of the top level: name, run, model"),
        ("model.qqqq=1", "unknown key 'model.qqqq'; keys of model: family"),
        ("schedule.timescale=3", "unknown key 'schedule.timescale': schedule.kind = 'linear' has no such key"),
        ("base=demo", "unknown key 'base'"),
        ("train.max_steps=many", "train.max_steps = 'many' is not valid; allowed: integer > 0"),
        ("train.max_steps=2.5", "train.max_steps = 2.5 is not valid; allowed: integer > 0"),
        ("train.seed=true", "train.seed = true is not valid; allowed: integer >= 0"),
        ("train.seed='3'", "train.seed = '3' is not valid; allowed: integer >= 0"),
        ("train.stop_at_step=0", "train.stop_at_step = 0 is not valid; allowed: integer > 0 or null"),
        ("train.precision=fp8", "train.precision = 'fp8' is not valid; allowed: fp32, bf16, fp16"),
        ("optimizer.betas=[0.9]", "optimizer.betas = [0.9] is not valid; allowed: list of 2 x number >= 0 and < 1"),
        ("optimizer.betas=[0.9,2]", "optimizer.betas[1] = 2 is not valid; allowed: list of 2"),
        ("optimizer.no_decay=[norm]", "optimizer.no_decay[0] = 'norm' is not valid; allowed: list of norms, biases"),
        ("optimizer.lr=.inf", "command line: optimizer.lr = inf is not a finite number"),
        ("monitors.tensorboard=1", "monitors.tensorboard = 1 is not valid; allowed: true or false"),
        ("data.train=12", "data.train = 12 is not valid; allowed: text"),
        ("name=../x", "name = '../x' is not valid; write the name of the run: letters of English, digits, dot"),
        ("name='my run'", "name = 'my run' is not valid; write the name of the run: letters of English, digits, dot"),
        ("name=" + "x" * 201, "a letter or digit first, at most 200"),
        ("model.block.kind=deepnrm", "model.block.kind = 'deepnrm' is not a known kind; did you mean 'deepnorm'?"),
        ("schedule.kind=null", "schedule.kind = null is not a known kind; known: constant, cosine"),
        ("schedule=null", "schedule = null is not a section; set keys below it, such as schedule.kind"),
        ("train=3", "train = 3 is not a section; set keys below it, such as train.max_steps"),
        ("train.seed", "override 'train.seed' has no '='; write key.path=value"),
        ("train..seed=1", "override 'train..seed=1': 'train..seed' is not a key"),
        ("=1", "override '=1': '' is not a key"),
        ("train.seed=[1,", "override 'train.seed=[1,': the value is not YAML"),
        ("run.dir=${oc.env:HOME}", "command line: run.dir = '${oc.env:HOME}', but values are not interpolated"),
    ],
)
def test_wrong_overrides_are_one_line_with_key_value_and_cure(override, expected):
    assert expected in message("demo", [override])


def test_several_problems_show_the_first_and_count_the_rest():
    line = message("demo", ["train.max_steps=x", "optimizer.lrr=1", "train.seed=-1"])
    assert line.endswith("(and 2 more)")
    assert message("demo", ["train.seed=-1"]).endswith("allowed: integer >= 0")


def test_unknown_recipe_names_the_nearest_and_lists_all():
    line = message("demmo")
    assert line.startswith("unknown recipe 'demmo'; did you mean 'demo'?")
    assert all(name in line for name in recipe_names())


def test_missing_recipe_file_is_named(tmp_path):
    assert f"{tmp_path}/none.yaml does not exist" in message(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml is a folder" in message(tmp_path / "folder.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  seed: 1\n seed: 2\n", "r.yaml:3: broken YAML"),
        ("train:\n\tseed: 1\n", "r.yaml:2: broken YAML"),
        ("train:\n  seed: 1\n  seed: 2\n", "r.yaml:3: broken YAML: key 'seed' stands twice"),
        ("train: !!python/object/apply:os.getcwd []\n", "r.yaml:1: broken YAML"),
        ("- 1\n- 2\n", "a recipe is a mapping of keys to values, not list"),
        ("train: {1: 2}\n", "key 1 is not text"),
        ("train.max_steps: 3\n", "unknown key 'train.max_steps': in a file, nest it (train: max_steps)"),
        ("run: {dir: '${oc.env:HOME}'}\n", "run.dir = '${oc.env:HOME}', but values are not interpolated"),
        ("base: 3\n", "base = 3 is not valid; give one recipe's name or file"),
        ("base: nothing\n", "unknown recipe 'nothing'"),
        ("base: nothing.yaml\n", "nothing.yaml does not exist"),
        ("base: r.yaml\n", "recipes build on each other in a circle (r.yaml -> r.yaml)"),
        ("tiny: 3\n", "tiny = 3 is not a section"),
    ],
)
def test_broken_recipe_files_are_one_line_with_file(text, expected, write):
    line = message(write("r.yaml", text))
    assert expected in line
    assert "r.yaml" in line or "nothing" in line or "train.max_steps" in line


def test_recipes_that_build_on_each_other_are_refused(write):
    write("a.yaml", "base: b.yaml")
    write("b.yaml", "base: c.yaml")
    assert "(c.yaml -> a.yaml -> b.yaml -> c.yaml)" in message(write("c.yaml", "base: a.yaml"))


def test_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\xfe")
    assert "not UTF-8" in message(tmp_path / "r.yaml")


def test_tiny_without_a_tiny_section_is_refused(write):
    assert "no `tiny:` section" in message(write("r.yaml", "train: {seed: 1}"), tiny=True)


def test_an_empty_recipe_is_the_defaults(write):
    assert load_experiment(write("r.yaml", "")).model.hidden_size == 512


def test_the_environment_does_not_reach_an_experiment(monkeypatch):
    before = load_experiment("demo")
    monkeypatch.setenv("HIDDEN_SIZE", "8")
    monkeypatch.chdir(Path(__file__).parent)
    assert load_experiment("demo") == before
