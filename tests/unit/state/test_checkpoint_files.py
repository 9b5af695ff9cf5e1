"""Checkpoints on the disk: what is written comes back from any range, and each damage is one clear line."""

from __future__ import annotations

import itertools
import json
import os
import random
from dataclasses import replace

import pytest
import torch

from pretrain.errors import CheckpointError
from pretrain.state.files import replace_text
from pretrain.state.index import MOMENTS, WEIGHT, Box, Index, Piece
from pretrain.state.manifest import Manifest
from pretrain.state.reader import Checkpoint, list_checkpoints, resolve_checkpoint, step_folder
from pretrain.state.writer import commit, rank_file, read_pieces, write_common_files, write_rank_file

torch.set_num_threads(1)
SHAPES = {"token_embedding.weight": (7, 5), "decoder.layers.0.ffn.fc1.weight": (6, 8), "gain": (), "norm.bias": (9,)}
COLUMNS = "decoder.layers.0.ffn.fc1.weight"
TRAINING = {"progress": {"step": 12, "loss": 3.25}, "data": {"samples_consumed": 96}}


def parameters(quantity):
    generator = torch.Generator().manual_seed(len(quantity))
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def shares():
    """Rank -> (name, box, start, stop): ragged ranges; one parameter in two column boxes of 3 and 5."""
    left, right = Box((0, 0), (6, 3)), Box((0, 3), (6, 5))
    whole = {name: Box.whole(shape) for name, shape in SHAPES.items()}
    return {
        0: [("token_embedding.weight", whole["token_embedding.weight"], 11, 35), (COLUMNS, left, 0, 18)],
        1: [(COLUMNS, right, 13, 30), ("gain", whole["gain"], 0, 1), ("norm.bias", whole["norm.bias"], 3, 4)],
        2: [
            ("norm.bias", whole["norm.bias"], 0, 3),
            ("token_embedding.weight", whole["token_embedding.weight"], 0, 11),
            ("norm.bias", whole["norm.bias"], 4, 9),
            (COLUMNS, right, 0, 13),
        ],
    }


def write(checkpoints, step=12, quantities=(WEIGHT, *MOMENTS), given=None):
    """A checkpoint of three ranks."""
    temporary = checkpoints / f".saving_{step}"
    temporary.mkdir(parents=True)
    values = {quantity: parameters(quantity) for quantity in quantities}
    records, pieces = {}, []
    for rank, own in (given or shares()).items():
        at, rows = 0, []
        for name, box, start, stop in own:
            rows.append(Piece(name, SHAPES[name], box, start, stop, at))
            at += stop - start

        def flat(piece, quantity):
            where = tuple(slice(o, o + s) for o, s in zip(piece.box.offset, piece.box.size, strict=True))
            return values[quantity][piece.name][where].reshape(-1)[piece.start : piece.stop]

        buffers = {q: torch.cat([flat(piece, q) for piece in rows]) for q in quantities}
        records[rank_file(rank)] = write_rank_file(temporary, rank, rows, {**buffers, "rng_torch": torch.zeros(3)})
        pieces += read_pieces(temporary, rank)
    write_common_files(temporary, Index(pieces), TRAINING, {"config.yaml": b"name: x\n", "tokenizer.model": b"\0\1"})
    commit(temporary, step_folder(checkpoints, step), step, {"processes": 3}, records)
    return step_folder(checkpoints, step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "checkpoints")


@pytest.fixture
def reads(monkeypatch):
    """(file, bytes, "header" or "data") of everything that the reader asks the system for."""
    seen, pread, preadv = [], os.pread, os.preadv

    def name(handle):
        return os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: PTH115, PTH119

    def header(handle, count, at):
        seen.append((name(handle), count, "header"))
        return pread(handle, count, at)

    def data(handle, buffers, at):
        seen.append((name(handle), sum(buffer.nbytes for buffer in buffers), "data"))
        return preadv(handle, buffers, at)

    monkeypatch.setattr(os, "pread", header)
    monkeypatch.setattr(os, "preadv", data)
    return seen


class TestReading:
    def test_pieces_of_a_rank_come_back(self, folder):
        found = [(p.name, p.box, p.start, p.stop, p.file) for p in read_pieces(folder, 2)]
        assert found == [(*row, "rank_00002.safetensors") for row in shares()[2]]

    def test_whole_parameters(self, folder):
        checkpoint = Checkpoint(folder)
        assert checkpoint.step == 12
        assert checkpoint.training() == TRAINING
        assert checkpoint.index.incomplete() == []
        for quantity in (WEIGHT, *MOMENTS):
            assert checkpoint.has(quantity)
            for name, expected in parameters(quantity).items():
                found = checkpoint.read(name, quantity)
                assert found.shape == expected.shape
                assert torch.equal(found, expected)
        assert not checkpoint.has("momentum")

    @pytest.mark.parametrize("quantity", [WEIGHT, *MOMENTS])
    def test_every_range_of_every_parameter(self, folder, quantity):
        """Column boxes too; the elements around the target stay as they are."""
        checkpoint = Checkpoint(folder, verify="sizes")
        for name, expected in parameters(quantity).items():
            flat = expected.reshape(-1)
            for start in range(len(flat)):
                for stop in range(start, len(flat) + 1):
                    buffer = torch.full((stop - start + 2,), 77.0)
                    checkpoint.read_into(buffer[1:-1], name, start, quantity)
                    assert torch.equal(buffer[1:-1], flat[start:stop]), (name, start, stop)
                    assert buffer[0] == buffer[-1] == 77

    def test_only_what_is_asked_for_is_read(self, folder, reads):
        checkpoint = Checkpoint(folder, verify="nothing")
        checkpoint.read_into(torch.empty(4), "token_embedding.weight", 9)
        data = {name: count for name, count, what in reads if what == "data"}
        assert data == {"rank_00000.safetensors": 2 * 4, "rank_00002.safetensors": 2 * 4}
        reads.clear()
        checkpoint.read_into(torch.empty(1), "norm.bias", 8)
        assert reads == [("rank_00002.safetensors", 4, "data")], "the header is read once"

    def test_one_layer_of_many_costs_its_bytes(self, tmp_path, reads):
        """100 layers in one file: index and header apart, reading one takes 1% of the file."""
        shape, layers = (40, 50), 100
        pieces = [
            Piece(f"layers.{i}.weight", shape, Box.whole(shape), 0, 2000, 2000 * i, rank_file(0)) for i in range(layers)
        ]
        draft, values = tmp_path / ".saving_1", torch.arange(2000.0 * layers)
        draft.mkdir()
        record = write_rank_file(draft, 0, pieces, dict.fromkeys((WEIGHT, *MOMENTS), values))
        write_common_files(draft, Index(pieces), {}, {})
        commit(draft, tmp_path / "step_00000001", 1, {}, {rank_file(0): record})
        checkpoint = Checkpoint(tmp_path / "step_00000001", verify="sizes")
        assert torch.equal(checkpoint.read("layers.17.weight").view(-1), values[34000:36000])
        assert sum(count for _, count, what in reads if what == "data") == 4 * 2000
        header = sum(count for _, count, what in reads if what == "header")
        assert 8 < header < 0.05 * record.bytes
        reads.clear()
        checkpoint.read("layers.99.weight", "exp_avg_sq")
        assert reads == [(rank_file(0), 4 * 2000, "data")]

    def test_many_rank_files_are_not_open_at_once(self, folder, monkeypatch):
        monkeypatch.setattr("pretrain.state.reader.MOST_OPEN", 1)
        checkpoint = Checkpoint(folder)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(2):
            for name, expected in parameters(WEIGHT).items():
                assert torch.equal(checkpoint.read(name), expected)
                assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208

    def test_fill_casts_and_refuses_what_does_not_fit(self, folder):
        checkpoint = Checkpoint(folder)
        target = torch.zeros(9, dtype=torch.bfloat16)
        checkpoint.fill([("norm.bias", target)])
        assert torch.equal(target, parameters(WEIGHT)["norm.bias"].bfloat16())
        with pytest.raises(CheckpointError, match=r"no parameter 'nonsense'"):
            checkpoint.fill([("nonsense", target)])
        with pytest.raises(CheckpointError, match=r"norm.bias has shape \[9\], the model's is \[3, 3\]"):
            checkpoint.fill([("norm.bias", torch.zeros(3, 3))])

    def test_weights_alone(self, tmp_path):
        checkpoint = Checkpoint(write(tmp_path, quantities=(WEIGHT,)))
        assert checkpoint.has(WEIGHT)
        assert not checkpoint.has("exp_avg")
        assert torch.equal(checkpoint.read(COLUMNS), parameters(WEIGHT)[COLUMNS])

    def test_random_shares(self, tmp_path):
        draw = random.Random(3)
        for round_ in range(10):
            given = {rank: [] for rank in range(4)}
            for name, shape in SHAPES.items():
                numel = torch.Size(shape).numel()
                cuts = sorted({0, numel, *(draw.randint(0, numel) for _ in range(3))})
                for a, b in itertools.pairwise(cuts):
                    given[draw.randrange(4)].append((name, Box.whole(shape), a, b))
            given = {rank: own for rank, own in given.items() if own}
            ranks = dict(enumerate(given.values()))
            checkpoint = Checkpoint(write(tmp_path / str(round_), given=ranks))
            for name, expected in parameters(WEIGHT).items():
                assert torch.equal(checkpoint.read(name), expected)
                start = draw.randrange(expected.numel())
                target = torch.empty(expected.numel() - start)
                checkpoint.read_into(target, name, start)
                assert torch.equal(target, expected.reshape(-1)[start:])

    def test_a_parameter_with_a_missing_piece_is_refused(self, tmp_path):
        """Elements that nobody saved must not be read as whatever lies in memory."""
        own = shares()
        own[1] = own[1][:2]  # element 3 of norm.bias is nobody's
        with pytest.raises(CheckpointError, match=r"norm\.bias"):
            Checkpoint(write(tmp_path, given=own)).read("norm.bias")


def one_line(error):
    assert isinstance(error.value, CheckpointError)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


class TestDamage:
    @pytest.fixture
    def copy(self, folder, tmp_path):
        import shutil

        return shutil.copytree(folder, tmp_path / "step_00000012")

    @pytest.mark.parametrize("name", ["rank_00001.safetensors", "index.json", "training.json", "config.yaml"])
    @pytest.mark.parametrize("verify", ["hashes", "sizes"])
    def test_missing_file(self, copy, name, verify):
        (copy / name).unlink()
        with pytest.raises(CheckpointError) as error:
            Checkpoint(copy, verify)
        assert f"{name} is missing" in one_line(error)
        assert str(copy) in str(error.value)

    @pytest.mark.parametrize("name", ["rank_00002.safetensors", "index.json", "training.json", "tokenizer.model"])
    @pytest.mark.parametrize("verify", ["hashes", "sizes"])
    def test_truncated_file(self, copy, name, verify):
        size = (copy / name).stat().st_size
        with (copy / name).open("r+b") as file:
            file.truncate(size - 1)
        with pytest.raises(CheckpointError) as error:
            Checkpoint(copy, verify)
        assert f"{name} has {size - 1} bytes instead of {size}" in one_line(error)

    @pytest.mark.parametrize("name", ["rank_00000.safetensors", "index.json", "training.json", "config.yaml"])
    def test_flipped_bit(self, copy, name):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 4
        (copy / name).write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            Checkpoint(copy)
        assert f"{name} differs from its SHA-256" in one_line(error)

    def test_ranks_divide_the_work(self, copy):
        content = bytearray((copy / "rank_00001.safetensors").read_bytes())
        content[-1] ^= 1
        (copy / "rank_00001.safetensors").write_bytes(content)
        manifest = Manifest.read(copy)
        for count in (1, 2, 3, 9):
            found = [manifest.damaged(copy, (rank, count)) for rank in range(count)]
            assert [f for f in found if f] == ["rank_00001.safetensors differs from its SHA-256 in the manifest"]
            assert all(manifest.damaged(copy, (rank, count), hashes=False) is None for rank in range(count))

    @pytest.mark.parametrize(
        "content", ["{}", '{"tensors": {"a": {}}}', "[]", "{", '{"tensors": {"a": {"shape": [2]}}}']
    )
    def test_an_index_that_the_sizes_cannot_tell(self, copy, content):
        """`verify="sizes"` does not look into files: what it lets through must still be one line."""
        size = (copy / "index.json").stat().st_size
        (copy / "index.json").write_text(content.ljust(size))
        with pytest.raises(CheckpointError) as error:
            Checkpoint(copy, verify="sizes")
        assert "index.json" in one_line(error)


class TestManifest:
    def test_round_trip(self, folder, tmp_path):
        manifest = Manifest.read(folder)
        assert manifest.step == 12
        assert manifest.layout == {"processes": 3}
        names = {path.name for path in folder.iterdir()} - {"manifest.json"}
        assert set(manifest.files) == names
        manifest.write(tmp_path)
        assert Manifest.read(tmp_path) == manifest

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError) as error:
            Manifest.read(tmp_path)
        assert "not a checkpoint" in one_line(error)
        with pytest.raises(CheckpointError) as error:
            Checkpoint(tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in one_line(error)

    @pytest.mark.parametrize(("key", "value"), [("format", "other"), ("version", 2), ("version", "1")])
    def test_other_format_or_version(self, folder, tmp_path, key, value):
        body = json.loads((folder / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**body, key: value}))
        with pytest.raises(CheckpointError) as error:
            Manifest.read(tmp_path)
        assert str(value) in one_line(error)
        assert "kilolayer-checkpoint 1" in str(error.value)

    @pytest.mark.parametrize(
        "change",
        [
            {"files": []},
            {"files": {"a": []}},
            {"files": {"a": {"bytes": 1}}},
            {"files": {"a": {"bytes": 1, "sha256": "", "more": 1}}},
            {"files": None},
            {"step": "12"},
            {"step": None},
        ],
        ids=str,
    )
    def test_valid_json_of_another_form(self, folder, tmp_path, change):
        body = json.loads((folder / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**body, **change}))
        with pytest.raises(CheckpointError) as error:
            Manifest.read(tmp_path)
        assert "manifest.json" in one_line(error)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00", b'"text"', b"\0" * 400])
    def test_not_json_or_no_object(self, tmp_path, content):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            Manifest.read(tmp_path)
        assert "manifest.json" in one_line(error)

    def test_truncated_anywhere(self, folder, tmp_path):
        content = (folder / "manifest.json").read_bytes()
        for length in range(len(content)):
            (tmp_path / "manifest.json").write_bytes(content[:length])
            with pytest.raises(CheckpointError) as error:
                Manifest.read(tmp_path)
            one_line(error)

    def test_flipped_bits(self, folder, tmp_path):
        """Every bit of the manifest: one line, or the file is then found to differ; never another step or a trace."""
        content, whole = (folder / "manifest.json").read_bytes(), Manifest.read(folder)
        passed = []
        for at in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[at] ^= 1 << bit
                (tmp_path / "manifest.json").write_bytes(flipped)
                try:
                    read = Manifest.read(tmp_path)
                except CheckpointError as error:
                    assert len(str(error).splitlines()) == 1  # noqa: PT017
                    continue
                if read.files == whole.files or read.damaged(folder) is None:
                    passed.append((read.step, read.layout))
        # The layout is for people only; the step decides what a run does.
        assert {step for step, _ in passed} <= {12}


class TestListing:
    def test_by_number(self, tmp_path):
        for step in (9, 10, 100, 99_999_999, 100_000_000, 1):
            step_folder(tmp_path, step).mkdir()
        for other in ("step_x", "step_", "latest", ".saving_00000007", "step_00000003.tmp", "step_-4"):
            (tmp_path / other).mkdir()
        found = [int(path.name[5:]) for path in list_checkpoints(tmp_path)]
        assert found == [100_000_000, 99_999_999, 100, 10, 9, 1]
        assert list_checkpoints(tmp_path / "nowhere") == []

    def test_digits_of_other_scripts_are_no_number(self, tmp_path):
        (tmp_path / "step_²").mkdir()
        assert list_checkpoints(tmp_path) == []

    def test_only_folders(self, tmp_path):
        step_folder(tmp_path, 3).mkdir()
        step_folder(tmp_path, 4).write_text("no folder")
        assert list_checkpoints(tmp_path) == [step_folder(tmp_path, 3)]

    def test_resolve(self, tmp_path):
        run = tmp_path / "run"
        older, newer = (write(run / "checkpoints", step) for step in (9, 100))
        incomplete = step_folder(run / "checkpoints", 200)
        incomplete.mkdir()
        assert resolve_checkpoint(run) == newer
        assert resolve_checkpoint(run / "checkpoints") == newer
        assert resolve_checkpoint(older) == older
        assert resolve_checkpoint(str(run)) == newer
        for wrong in (incomplete, tmp_path, tmp_path / "nowhere", older / "config.yaml"):
            with pytest.raises(CheckpointError) as error:
                resolve_checkpoint(wrong)
            assert str(wrong) in one_line(error)


class TestDurableFiles:
    def test_readable_by_group_and_others(self, tmp_path):
        before = os.umask(0o022)
        try:
            folder = write(tmp_path)
            replace_text(tmp_path / "latest", "x")
        finally:
            os.umask(before)
        for path in (*folder.iterdir(), tmp_path / "latest"):
            assert path.stat().st_mode & 0o044 == 0o044, path
        assert folder.stat().st_mode & 0o055 == 0o055

    def test_replace_text_is_atomic(self, tmp_path):
        """A reader sees the old text or the new one; a failed write leaves the old text."""
        path = tmp_path / "latest"
        replace_text(path, "old\n")
        handle = path.open()  # opened before: still the old file
        replace_text(path, "new text\n")
        assert handle.read() == "old\n"
        handle.close()
        assert path.read_text() == "new text\n"
        with pytest.raises(UnicodeEncodeError):
            replace_text(path, "half \ud800")
        assert path.read_text() == "new text\n"
        replace_text(path, "naïve ∑\n")
        assert path.read_bytes() == "naïve ∑\n".encode()

    def test_no_temporary_file_stays(self, tmp_path):
        replace_text(tmp_path / "latest", "x")
        assert [path.name for path in tmp_path.iterdir()] == ["latest"]

    def test_reader_never_sees_a_part(self, tmp_path):
        import threading

        path, texts = tmp_path / "summary.json", ["a" * 200_000, "b" * 100_000]
        replace_text(path, texts[0])
        seen, stop = set(), threading.Event()

        def read():
            while not stop.is_set():
                seen.add(path.read_text())

        reader = threading.Thread(target=read)
        reader.start()
        for i in range(60):
            replace_text(path, texts[i % 2])
        stop.set()
        reader.join()
        assert seen <= set(texts)

    def test_commit_lists_every_file_and_renames(self, folder):
        assert not list(folder.parent.glob(".saving*"))
        manifest = Manifest.read(folder)
        for name, entry in manifest.files.items():
            assert (folder / name).stat().st_size == entry.bytes
        assert manifest.damaged(folder) is None
        wrong = replace(manifest, files={**manifest.files, "rank_00003.safetensors": manifest.files["config.yaml"]})
        assert wrong.damaged(folder) == "rank_00003.safetensors is missing"
