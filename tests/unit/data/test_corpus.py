"""Corpora: what belongs to them, what is refused, and how they are split."""

import json

import pytest

from pretrain.data.corpus import held_out_split, open_corpus, scan
from pretrain.errors import DataError


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return str(folder)


def names(corpus):
    return [document.name for document in corpus.documents()]


def test_embedded_is_the_standard_library_and_nothing_installed():
    corpus = open_corpus("embedded")
    found = [path.relative_to(corpus.root) for path in corpus.paths]
    assert len(found) > 300
    assert found == sorted(found)
    assert {"argparse.py", "json/decoder.py"} <= {path.as_posix() for path in found}
    assert not [path for path in found if {"site-packages", "__pycache__"} & set(path.parts)]


def test_a_folder_is_read_in_order_with_exact_text(tmp_path):
    spec = write(tmp_path / "c", b_txt="zwei\r\n\tüß 😀".encode(), a_txt=b"one", empty_txt=b"")
    documents = list(open_corpus(spec).documents())
    assert [(d.name, d.text) for d in documents] == [("a.txt", "one"), ("b.txt", "zwei\r\n\tüß 😀")]


def test_binary_and_undecodable_files_are_skipped_and_counted(tmp_path):
    spec = write(tmp_path / "c", a_txt=b"text", b_bin=b"a\0b", c_txt="ü".encode("latin-1"))
    skipped = []
    assert [d.name for d in open_corpus(spec).documents(skipped.append)] == ["a.txt"]
    assert skipped == ["b.bin", "c.txt"]
    assert scan(open_corpus(spec)).skipped == 2


def test_glob_chooses_and_hidden_files_never_belong(tmp_path):
    spec = write(tmp_path / "c", a_txt=b"x", b_md=b"y", _hidden=b"z")
    (tmp_path / "c" / ".git").mkdir()
    (tmp_path / "c" / ".git" / "config").write_text("k")
    assert names(open_corpus(spec)) == ["a.txt", "b.md"]
    assert names(open_corpus(spec, "*.md")) == ["b.md"]


def test_jsonl_lines_are_documents(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a\\nb", "id": 1}\n\n{"text": "c"}\n{"text": ""}\n')
    assert [(d.name, d.text) for d in open_corpus(str(path)).documents()] == [("1", "a\nb"), ("3", "c")]


@pytest.mark.parametrize(
    "line", ["{", '{"txt": "a"}', '"a"', '{"text": 3}', '{"text": "\\ud800"}', "[1]", "null", "\udcff"]
)
def test_a_bad_jsonl_line_is_named(tmp_path, line):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DataError) as error:
        scan(open_corpus(str(path)))
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "absent", "data.train: .*absent does not exist"),
        (lambda p: write(p / "c"), "data.train: .*is empty: no file matches data.glob"),
        (lambda p: write(p / "c", a_txt=b"", b_bin=b"\0"), "data.train: .*is empty.*1 files that are not UTF-8"),
        (lambda p: write(p / "c", a_txt=b"x") + "/a.txt", "data.train: .*is a file but not .jsonl"),
    ],
)
def test_a_corpus_that_cannot_be_used_ends_in_one_line(tmp_path, make, said):
    with pytest.raises(DataError, match=said) as error:
        scan(open_corpus(str(make(tmp_path))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("glob", ["/etc/*", "", "**x/["])
def test_a_bad_glob_is_one_line(tmp_path, glob):
    with pytest.raises(DataError, match=r"data\.glob"):
        open_corpus(write(tmp_path / "c", a_txt=b"x"), glob)


def test_the_fingerprint_covers_names_and_content_the_listing_covers_writes(tmp_path):
    spec = write(tmp_path / "c", a_txt=b"one", b_txt=b"two")
    first = open_corpus(spec)
    fingerprint, listing = scan(first).fingerprint, first.listing()
    assert scan(open_corpus(spec)).fingerprint == fingerprint
    write(tmp_path / "c", b_txt=b"tWo")
    assert scan(open_corpus(spec)).fingerprint != fingerprint
    assert open_corpus(spec).listing() != listing
    write(tmp_path / "c", b_txt=b"two")
    assert scan(open_corpus(spec)).fingerprint == fingerprint
    (tmp_path / "c" / "b.txt").rename(tmp_path / "c" / "d.txt")
    assert scan(open_corpus(spec)).fingerprint != fingerprint


def test_the_split_holds_out_about_the_fraction_by_name():
    corpus = open_corpus("embedded")
    split = held_out_split(scan(corpus), 0.1, "x")
    held = [split.holds_out(name) for name in names(corpus)]
    assert 0.07 < sum(held) / len(held) < 0.13


def test_the_split_does_not_move_documents_when_others_come(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = [json.dumps({"text": f"document {i}"}) for i in range(400)]

    def held():
        corpus = open_corpus(str(path))
        split = held_out_split(scan(corpus), 0.1, "x")
        return {name for name in names(corpus) if split.holds_out(name)}

    path.write_text("\n".join(lines[:200]))
    before = held()
    path.write_text("\n".join(lines))
    assert before == {name for name in held() if int(name) <= 200}


@pytest.mark.parametrize("fraction", [1e-9, 0.499])
@pytest.mark.parametrize("documents", [2, 3, 7])
def test_each_split_has_a_document(tmp_path, fraction, documents):
    spec = write(tmp_path / "c", **{f"f{i}_txt": b"x" for i in range(documents)})
    corpus = open_corpus(spec)
    held = [held_out_split(scan(corpus), fraction, spec).holds_out(name) for name in names(corpus)]
    assert any(held)
    assert not all(held)


def test_a_single_document_cannot_be_split(tmp_path):
    spec = write(tmp_path / "c", a_txt=b"x")
    with pytest.raises(DataError, match=r"single document.*data\.validation"):
        held_out_split(scan(open_corpus(spec)), 0.1, spec)
