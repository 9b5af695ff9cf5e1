"""Corpora that the datasets library or a parquet writer left on the disk."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.config.checks import check
from pretrain.config.schema import Experiment
from pretrain.data.corpus import scan
from pretrain.data.prepare import prepare
from pretrain.data.units import unit_of
from pretrain.errors import DataError

TEXTS = ["def one():\n    return 1\n", "", "zwei\r\n\tüß 😀", None, "three"]
KEPT = [("1", TEXTS[0]), ("3", TEXTS[2]), ("5", TEXTS[4])]


def opened(path, glob="**/*", key="data.train"):
    experiment = Experiment.model_validate({"data": {"glob": glob}})
    return unit_of(experiment).open(experiment, f"hf:{path}", key)


def found(corpus):
    return [(document.name, document.text) for document in corpus.documents()]


def table(texts=TEXTS, column="text"):
    return pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})


def write_arrow(path, kind=pa.ipc.new_stream):
    with kind(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=2)


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict({"id": range(5), "text": TEXTS}).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


class TestForms:
    def test_a_saved_dataset(self, saved):
        assert found(opened(saved)) == KEPT

    def test_a_saved_selection_is_read_in_its_own_order(self, tmp_path):
        whole = datasets.Dataset.from_dict({"text": [text or "" for text in TEXTS]})
        whole.select([4, 2, 0]).save_to_disk(tmp_path / "some")
        assert [text for _, text in found(opened(tmp_path / "some"))] == ["three", TEXTS[2], TEXTS[0]]

    def test_a_split_of_a_saved_dictionary(self, tmp_path):
        split = datasets.Dataset.from_dict({"text": TEXTS})
        datasets.DatasetDict({"train": split, "test": split.select([4])}).save_to_disk(tmp_path / "both")
        assert found(opened(tmp_path / "both" / "test")) == [("1", "three")]
        with pytest.raises(
            DataError, match=r"^data\.train: hf:.*/both holds the splits train and test; give one.*/train"
        ):
            opened(tmp_path / "both")

    @pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
    def test_arrow_files(self, tmp_path, kind):
        write_arrow(tmp_path / "a.arrow", kind)
        assert found(opened(tmp_path)) == KEPT
        assert found(opened(tmp_path / "a.arrow")) == KEPT

    def test_parquet_files_in_order_numbered_through(self, tmp_path):
        (tmp_path / "data").mkdir()
        for name in ("train-00001.parquet", "train-00000.parquet", "test-00000.parquet", ".hidden.parquet"):
            pq.write_table(table([name, "more"]), tmp_path / "data" / name, row_group_size=1)
        (tmp_path / "README.md").write_text("no data")
        assert found(opened(tmp_path, "**/train-*")) == [
            ("1", "train-00000.parquet"),
            ("2", "more"),
            ("3", "train-00001.parquet"),
            ("4", "more"),
        ]
        assert [text for _, text in found(opened(tmp_path))][::2] == [
            "test-00000.parquet",
            "train-00000.parquet",
            "train-00001.parquet",
        ]

    def test_large_strings(self, tmp_path):
        pq.write_table(pa.table({"text": pa.array(["a", "b"], pa.large_string())}), tmp_path / "large.parquet")
        assert found(opened(tmp_path)) == [("1", "a"), ("2", "b")]


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda folder: None, "does not exist"),
            (lambda folder: folder.mkdir(), "holds no saved dataset"),
            (lambda folder: folder.write_text("x"), "holds no saved dataset"),
        ],
    )
    def test_what_is_no_dataset(self, tmp_path, make, said):
        make(tmp_path / "there")
        with pytest.raises(DataError, match=rf"^data\.validation: hf:{tmp_path}/there {said}.*; ") as caught:
            opened(tmp_path / "there", key="data.validation")
        assert "\n" not in str(caught.value)

    def test_no_text_field(self, tmp_path):
        pq.write_table(table(column="content"), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet: no field `text` among id, content; rename"):
            found(opened(tmp_path))

    def test_no_text_field_in_a_saved_dataset(self, tmp_path):
        datasets.Dataset.from_dict({"content": ["a"]}).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match=r"saved: no field `text` among content; rename"):
            found(opened(tmp_path / "saved"))

    def test_a_field_that_is_no_text(self, tmp_path):
        pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet: row 1: `text` is a list, not a string"):
            found(opened(tmp_path))

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
    def test_a_damaged_file(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"PAR1" + b"\0" * 100)
        with pytest.raises(DataError, match=rf"{name}: is damaged") as caught:
            found(opened(tmp_path))
        assert "\n" not in str(caught.value)

    def test_a_damaged_saved_dataset(self, saved):
        (saved / "state.json").write_text("{")
        with pytest.raises(DataError, match=r"saved: is damaged") as caught:
            found(opened(saved))
        assert "\n" not in str(caught.value)

    def test_both_kinds_of_files(self, tmp_path):
        pq.write_table(table(), tmp_path / "a.parquet")
        write_arrow(tmp_path / "a.arrow")
        with pytest.raises(DataError, match=r"both \.arrow and \.parquet.*data\.glob"):
            opened(tmp_path)


def test_the_listing_changes_with_any_file(saved):
    before = opened(saved).listing()
    assert before == opened(saved).listing()
    (saved / "data-00001-of-00002.arrow").touch()
    assert opened(saved).listing() != before


def test_experiments_take_it_and_the_check_sees_what_is_missing(experiment, tmp_path):
    lines = [f"def function_{i}(argument):\n    return argument + {i}\n" * 20 for i in range(60)]
    datasets.Dataset.from_dict({"text": lines}).save_to_disk(tmp_path / "saved")
    own = experiment(train=f"hf:{tmp_path / 'saved'}", vocab_size=420, glob="**/*")
    check(own, 1, "cpu")
    data = prepare(own, quiet=True)
    assert len(data.train) > 0
    assert scan(opened(tmp_path / "saved")).characters == sum(map(len, lines))
    with pytest.raises(DataError, match=r"^data\.train: hf:/no/such does not exist"):
        check(experiment(train="hf:/no/such"), 1, "cpu")
