"""The configuration page: current, complete, and true."""

from pathlib import Path

from pretrain.config.describe import configuration_page, iterate_keys
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_page_is_current():
    assert PAGE.read_text() == configuration_page(), "run: python -m pretrain.config.describe > docs/configuration.md"


def test_every_key_of_an_experiment_is_described_with_a_text():
    described = {key.path: key for key in iterate_keys()}
    assert set(leaves(Experiment().model_dump())) <= set(described)
    assert [key.path for key in iterate_keys() if not key.text] == []
    assert "schedule.timescale" in described


def test_every_key_stands_on_the_page():
    page = configuration_page()
    assert [key.path for key in iterate_keys() if f"| `{key.path}` |" not in page] == []


def test_the_defaults_on_the_page_can_be_given_as_overrides(tmp_path):
    recipe = tmp_path / "experiment.yaml"
    recipe.write_text("")
    defaults = load_experiment(str(recipe))
    overrides = [f"{key.path}={key.default}" for key in iterate_keys() if key.kind is None]
    assert load_experiment(str(recipe), overrides) == defaults
