"""Token files: Megatron's bytes, read back, refused when they are not whole."""

import struct

import numpy as np
import pytest

from pretrain.data.tokens import TokenFile, TokenWriter
from pretrain.errors import DataError


def write(prefix, documents, vocab_size=4096):
    with TokenWriter(prefix, vocab_size) as writer:
        for ids in documents:
            writer.append(ids)
            writer.end_document()
    return prefix


def test_what_is_written_is_read_back(tmp_path):
    documents = [np.random.default_rng(i).integers(0, 4096, 50 * i + 1) for i in range(20)]
    tokens = TokenFile(write(tmp_path / "t", documents))
    assert len(tokens) == sum(map(len, documents))
    assert tokens.tokens.dtype == np.uint16
    assert isinstance(tokens.tokens, np.memmap)
    assert (tokens.tokens == np.concatenate(documents)).all()
    assert tokens.lengths.tolist() == [len(d) for d in documents]
    assert tokens.documents == 20


def test_the_index_has_the_published_bytes(tmp_path):
    write(tmp_path / "t", [[1, 2, 3], [4, 5]])
    wanted = b"MMIDIDX\0\0" + struct.pack("<Q", 1) + bytes([8]) + struct.pack("<QQ", 2, 3)
    wanted += struct.pack("<2i", 3, 2) + struct.pack("<2q", 0, 6) + struct.pack("<3q", 0, 1, 2)
    assert (tmp_path / "t.idx").read_bytes() == wanted
    assert (tmp_path / "t.bin").read_bytes() == struct.pack("<5H", 1, 2, 3, 4, 5)


def test_large_vocabularies_take_int32(tmp_path):
    assert TokenFile(write(tmp_path / "a", [[65_499]], 65_499)).tokens.dtype == np.uint16
    tokens = TokenFile(write(tmp_path / "b", [[70_000]], 65_500)).tokens
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [70_000]


def test_a_document_may_come_in_parts(tmp_path):
    with TokenWriter(tmp_path / "t", 4096) as writer:
        writer.append([1, 2])
        writer.append([3])
        writer.end_document()
        writer.append([4])
    assert TokenFile(tmp_path / "t").lengths.tolist() == [3, 1]


def test_an_id_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must fit"), TokenWriter(tmp_path / "t", 4096) as writer:
        writer.append([70_000])


def test_no_index_is_written_when_writing_fails(tmp_path):
    def broken():
        yield [1]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(tmp_path / "t", broken())
    with pytest.raises(DataError):
        TokenFile(tmp_path / "t")


def test_an_empty_file_has_no_tokens(tmp_path):
    assert len(TokenFile(write(tmp_path / "t", []))) == 0


def test_other_readers_additions_are_accepted_and_unsafe_types_refused(tmp_path):
    write(tmp_path / "t", [[1, 2, 3]])
    index = (tmp_path / "t.idx").read_bytes()
    (tmp_path / "t.idx").write_bytes(index + b"\0")  # the optional mode of each sequence
    assert len(TokenFile(tmp_path / "t")) == 3
    for code in (0, 6, 7, 9):
        (tmp_path / "t.idx").write_bytes(index[:17] + bytes([code]) + index[18:])
        with pytest.raises(DataError, match=f"dtype code {code}"):
            TokenFile(tmp_path / "t")


@pytest.mark.parametrize("name", ["t.bin", "t.idx"])
@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b[: len(b) // 2], lambda b: b + b"xx", lambda b: b""])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    write(tmp_path / "t", [[1, 2, 3], [4, 5], [6]])
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=name) as error:
        TokenFile(tmp_path / "t")
    assert "\n" not in str(error.value)


def test_wrong_pointers_wrong_magic_and_missing_files_are_named(tmp_path):
    write(tmp_path / "t", [[1, 2, 3], [4, 5]])
    index = bytearray((tmp_path / "t.idx").read_bytes())
    with pytest.raises(DataError, match=r"absent\.idx: cannot be read"):
        TokenFile(tmp_path / "absent")
    (tmp_path / "t.idx").write_bytes(b"X" + index[1:])
    with pytest.raises(DataError, match="no Megatron index"):
        TokenFile(tmp_path / "t")
    index[34 + 8] ^= 1  # first pointer
    (tmp_path / "t.idx").write_bytes(index)
    with pytest.raises(DataError, match="pointers"):
        TokenFile(tmp_path / "t")
