"""Parallel text: what is a pair, what is left out, and what is refused."""

import json

import pytest

from pretrain.data.catalogues import SYSTEM, languages
from pretrain.data.corpus import Document, open_corpus, rank_of, scan
from pretrain.data.parallel import Pair, open_pairs
from pretrain.errors import DataError

from .catalogue_files import write_catalogue


def lines_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_a_tab_separated_file_is_taken_as_it_is(tmp_path):
    skipped = []
    spec = lines_of(tmp_path, "a.tsv", ' one \t"eins"\r\n\r\ntwo\tzwei\n\tdrei\nfour\t \ntwo\tzwei\nlast\tletztes')
    assert list(open_pairs(spec).pairs(skipped.append)) == [
        Pair(" one ", '"eins"'), Pair("two", "zwei"), Pair("two", "zwei"), Pair("last", "letztes"),
    ]  # fmt: skip
    assert skipped == ["4", "5"]
    assert scan(open_pairs(spec)).skipped == 2


def test_a_json_lines_file_has_source_and_target(tmp_path):
    lines = [{"source": "a\tb\n", "target": "ä", "id": 1}, {"source": "c", "target": "d"}]
    spec = lines_of(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert list(open_pairs(spec).pairs()) == [Pair("a\tb\n", "ä"), Pair("c", "d")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "a\tb\none field\n", r"a\.tsv:2: 1 fields between tabs instead of 2"),
        ("a.tsv", "a\tb\tc\n", r"a\.tsv:1: 3 fields"),
        ("a.tsv", b"a\tb\n\n\xff\tb\n", r"a\.tsv:3: not UTF-8"),
        ("a.jsonl", '{"source": "a"}\n', r"a\.jsonl:1: .*no field 'target'"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a", "target": 1}\n', r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n', r"no field 'source'"),
        ("a.jsonl", "a\tb\n", r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"source": "\\ud800", "target": "b"}', r"a\.jsonl:1: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, text, said):
    with pytest.raises(DataError, match=said) as error:
        scan(open_pairs(lines_of(tmp_path, name, text)))
    assert "\n" not in str(error.value)


@pytest.fixture
def root(tmp_path):
    """Two programs in German, one of them in French too."""
    write_catalogue(
        tmp_path,
        "de",
        "editor",
        {
            "Open\n": "Öffnen\n",
            "menu\x04Open": "Auf",
            "other\x04Open": "Öffnen",  # the same pair again
            "OK": "OK",
            "Not translated": "",
            "%s: %d": "%s %d",
            "<b>%(name)s</b>": "{name}",
            "%d file\0%d files": "%d Datei\0%d Dateien",
            "%d sheep\0%d sheep": "%d Schaf\0%d Schafe",
            "translator-credits": "Erika Mustermann",
        },
    )
    write_catalogue(tmp_path, "de", "printer", {"Print": "Drucken", "Open": "Öffnen"})
    write_catalogue(tmp_path, "fr", "editor", {"menu\x04Open": "Ouvrir", "%d file\0%d files": "%d f\0%d ff", "Q": "q"})
    return tmp_path


PLURALS = [("%d file", "%d Datei"), ("%d files", "%d Dateien"), ("%d sheep", "%d Schaf"), ("%d sheep", "%d Schafe")]
GERMAN = [("Open", "Öffnen"), ("Open", "Auf"), *PLURALS, ("Print", "Drucken")]


def test_catalogues_give_each_translation_once(root):
    assert list(open_pairs(f"gettext:{root}", target="de").pairs()) == [Pair(*sides) for sides in GERMAN]


def test_catalogues_in_the_other_direction(root):
    pairs = list(open_pairs(f"gettext:{root}", source="de", target="en").pairs())
    assert pairs == [Pair(target, source) for source, target in GERMAN]


def test_two_other_languages_meet_in_the_messages(root):
    wanted = [Pair("Auf", "Ouvrir"), Pair("%d Datei", "%d f"), Pair("%d Dateien", "%d ff")]
    assert list(open_pairs(f"gettext:{root}", source="de", target="fr").pairs()) == wanted


def test_a_damaged_catalogue_is_left_out_and_counted(root):
    path = root / "de" / "LC_MESSAGES" / "editor.mo"
    path.write_bytes(path.read_bytes()[:-20])
    skipped = []
    found = list(open_pairs(f"gettext:{root}", target="de").pairs(skipped.append))
    assert found == [Pair("Print", "Drucken"), Pair("Open", "Öffnen")]
    assert skipped == ["editor.mo"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("en", None, r"objective\.target_language: gettext:.* needs it; .* has de fr$"),
        ("en", "xx", r"objective\.target_language: .* no catalogue in xx; set one of en de fr$"),
        ("yy", "de", r"objective\.source_language: .* no catalogue in yy; set one of en de fr$"),
        ("de", "de", "set two languages"),
    ],
)
def test_a_language_that_is_not_there_is_named(root, source, target, said):
    with pytest.raises(DataError, match=said):
        open_pairs(f"gettext:{root}", source, target)


def test_languages_without_a_common_program_are_refused(root):
    write_catalogue(root, "ja", "printer", {"Print": "印刷"})
    with pytest.raises(DataError, match="no program in both fr and ja; set one of them to en"):
        open_pairs(f"gettext:{root}", "fr", "ja")


@pytest.mark.parametrize(
    "spec", ["embedded", "{}", "{}/a.txt", "{}/absent.tsv", "{}/absent.jsonl", "gettext:{}/absent"]
)
def test_what_is_no_parallel_text_is_refused(tmp_path, spec):
    (tmp_path / "a.txt").write_text("a\tb")
    with pytest.raises(DataError, match=r"^data\.validation: ") as error:
        open_pairs(spec.format(tmp_path), target="de", key="data.validation")
    assert "\n" not in str(error.value)


def test_documents_hold_both_sides_and_sequences_each(tmp_path):
    corpus = open_pairs(lines_of(tmp_path, "a.tsv", "One two\teins zwei\n"))
    (document,) = corpus.documents()
    assert document.text.splitlines() == ["One two", "eins zwei"]
    assert list(corpus.sequences()) == [Document(document.name, "One two"), Document(document.name, "eins zwei")]


def test_sources_that_differ_in_case_blanks_and_marks_share_a_split():
    ranks = {rank_of(Pair(source, "x").name) for source in ("Open file", "_Open File...", "open\nfile!")}
    assert len(ranks) == 1
    others = {rank_of(Pair(source, "x").name) for source in ("Open files", "...", "!", "日本", "日")}
    assert len(others | ranks) == 6


def test_content_and_listing_belong_to_the_pairs(tmp_path, root):
    spec = lines_of(tmp_path, "a.jsonl", '{"source": "a", "target": "b", "text": "c"}')
    assert open_pairs(spec).listing() != open_corpus(spec).listing()  # facts are cached by it
    one, other = (open_pairs(f"gettext:{root}", target=language) for language in ("de", "fr"))
    assert one.listing() == open_pairs(f"gettext:{root}", target="de").listing()
    assert len({one.listing(), other.listing(), open_pairs(f"gettext:{root}", "de", "en").listing()}) == 3
    assert scan(one).fingerprint != scan(open_pairs(f"gettext:{root}", "de", "en")).fingerprint
    assert scan(one).documents == len(GERMAN)


@pytest.mark.skipif("de" not in languages(SYSTEM), reason="this machine has no German catalogues")
def test_the_catalogues_of_this_machine():
    pairs = list(open_pairs("gettext", target="de").pairs())
    assert len(pairs) > 100
    assert len(set(pairs)) == len(pairs)
    for pair in pairs:
        assert pair.source != pair.target
        for side in (pair.source, pair.target):
            assert side == side.strip() != ""
            assert "\0" not in side
            assert "\x04" not in side
            assert not side.startswith("Project-Id-Version")
