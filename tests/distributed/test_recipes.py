"""Every shipped recipe, tiny, in two stages and in two data-parallel processes: it learns, moves all, and exports."""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import pytest
from harness import Group, figures, losses, train_main

from pretrain.config.load import load_experiment, recipe_names
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.hosts import host_for
from pretrain.hf.trained import TrainedModel
from pretrain.hf.validation import NotComputed, check_validation_loss
from pretrain.models.layer_list import LayerList

from ..unit.data.catalogue_files import write_catalogue

NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}
NOUNS = {"file": "Datei", "folder": "Ordner", "line": "Zeile", "page": "Seite", "user": "Benutzer", "key": "Schlüssel"}
VERBS = {"was opened": "wurde geöffnet", "was not found": "wurde nicht gefunden", "is missing": "fehlt", "is": "ist"}

NO_NATIVE_CLASS = {
    *("parallel_gpt", "pre_ln_codeparrot", "sas_codeparrot", "sas_p_codeparrot"),  # RMSNorm, or the block
    *("crammed_bert", "crammed_bert_sas"),  # no native encoder is Pre-LN with gated FFNs
}
LAYOUTS = {
    "stages": ["parallel.pipeline_stages=2"],
    "data": ["parallel.pipeline_stages=1", "parallel.zero_stage=2"],
}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """(cache, a folder of source, parallel text by layout): small, so that tokenizers are trained in no time.

    The parallel text is in a file in one layout and in message catalogues in the other: the same pairs in one order.
    """
    cache = tmp_path_factory.mktemp("recipes")
    pairs = {
        f"{n} number {k} {v} now": f"{m} Nummer {z} {w} jetzt"
        for (n, m), (k, z), (v, w) in itertools.product(NOUNS.items(), NUMBERS.items(), VERBS.items())
    }
    file = cache / "pairs.tsv"
    file.write_text("".join(f"{source}\t{target}\n" for source, target in pairs.items()))
    write_catalogue(cache / "locale", "de", "program", pairs)
    parallel = {"stages": str(file), "data": f"gettext:{cache}/locale"}
    return cache, Path(sysconfig.get_path("stdlib")) / "asyncio", parallel


@pytest.fixture(scope="module", params=recipe_names())
def run(request, text, tmp_path_factory):
    """(recipe, folder of its two runs). Weight decay is off: it would move a parameter that has no gradient."""
    folder = tmp_path_factory.mktemp(request.param)
    cache, sources, parallel = text
    translates = load_experiment(request.param).objective.kind == "translation"
    train = parallel if translates else dict.fromkeys(LAYOUTS, sources)
    arguments = [
        "--recipe",
        request.param,
        "--tiny",
        "train.max_steps=5",
        "train.threads=1",
        "evaluation.interval=1",
        "optimizer.weight_decay=0",
        "monitors.tensorboard=false",
        f"run.cache={cache}",
    ]
    groups = [
        Group(train_main, 2, [*arguments, f"run.dir={folder}/{name}", f"data.train={train[name]}", *layout])
        for name, layout in LAYOUTS.items()
    ]
    assert [group.results() for group in groups] == [[0, 0], [0, 0]]
    return request.param, folder


def test_layouts_agree_and_the_loss_falls(run):
    """Five steps in fp32: layouts sum in another order (1e-5)."""
    _, folder = run
    stages, data = losses(folder / "stages"), losses(folder / "data")
    assert stages == pytest.approx(data, rel=1e-5)
    validations = figures(folder / "stages", "validation_loss")
    assert len(data) == len(validations) == 5
    assert validations[-1] < validations[0]


def test_every_parameter_moved(run):
    _, folder = run
    model = TrainedModel.open(folder / "stages")
    start = LayerList(model.architecture.spec, seed=model.experiment.train.seed)
    still = [name for name, value in start.named_parameters() if model.checkpoint.read(name).equal(value.detach())]
    assert still == []


def test_the_exported_form_gives_the_validation_loss(run, tmp_path):
    """The transformers class alone, on the run's own validation samples: 1e-4."""
    recipe, folder = run
    trained = TrainedModel.open(folder / "data")
    if recipe in NO_NATIVE_CLASS:
        with pytest.raises(UserError, match="no native Hugging Face class"):
            host_for(trained.architecture)
        return
    export(folder / "data", tmp_path / "hf", verify=False)
    if trained.experiment.data.document_mask:
        with pytest.raises(NotComputed):
            check_validation_loss(trained, tmp_path / "hf")
        return
    checked = check_validation_loss(trained, tmp_path / "hf")
    assert checked.loss == pytest.approx(figures(folder / "data", "validation_loss")[-1], abs=1e-4)
