"""Catalogues of gettext: written by hand, and those of this machine against the standard library's reader."""

import gettext
from collections import Counter

import pytest

from pretrain.data.catalogues import SYSTEM, Damaged, Message, catalogue_paths, languages, read_catalogue

from .catalogue_files import catalogue, write_catalogue

POLISH = (
    "Content-Type: text/plain; charset={charset}\n"
    "Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);\n"
)
JAPANESE = "Content-Type: text/plain; charset={charset}\nPlural-Forms: nplurals=1; plural=0;\n"
# One is the second form, as in catalogues whose first form is for none.
ZERO_FIRST = "Content-Type: text/plain; charset={charset}\nPlural-Forms: nplurals=3; plural=n==0 ? 0 : n==1 ? 1 : 2;\n"


@pytest.fixture
def read(tmp_path):
    def read(*arguments, **others):
        path = tmp_path / "program.mo"
        path.write_bytes(catalogue(*arguments, **others))
        return read_catalogue(path)

    return read


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_contexts_and_both_byte_orders(read, order):
    assert read({"Open": "Öffnen", "menu\x04Open": "Auf", "Close": ""}, order=order) == [
        Message("", 0, "Open", "Öffnen"),
        Message("menu", 0, "Open", "Auf"),
        Message("", 0, "Close", ""),
    ]


@pytest.mark.parametrize(
    ("header", "forms", "one", "several"),
    [
        (POLISH, "plik\0pliki\0plików", "plik", "plików"),
        (JAPANESE, "ファイル", "ファイル", "ファイル"),
        (ZERO_FIRST, "none\0one\0more", "one", "more"),
        (None, "eins\0zwei", "eins", "zwei"),  # no rule: that of English
        ("Plural-Forms: nplurals=2; plural=nonsense;\n", "eins\0zwei", "eins", "zwei"),
    ],
)
def test_plural_forms_give_the_form_of_one_and_that_of_most_numbers(read, header, forms, one, several):
    assert read({"file\0files": forms}, header=header) == [
        Message("", 0, "file", one),
        Message("", 1, "files", several),
    ]


def test_a_form_that_the_catalogue_lacks_is_left_out(read):
    assert read({"file\0files": "plik\0pliki"}, header=POLISH) == [Message("", 0, "file", "plik")]


def test_the_header_states_the_encoding(read):
    assert read({"Open": "Öffnen"}, charset="iso-8859-1") == [Message("", 0, "Open", "Öffnen")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-8],
        lambda raw: raw[:40],
        lambda raw: raw[:3],
        lambda raw: b"GIF89a" + raw[6:],
        lambda raw: raw[:4] + b"\0\0\x09\0" + raw[8:],  # version 9
        lambda raw: raw.replace("Ö".encode(), b"\xd6\x20"),  # not in its encoding
        lambda raw: raw.replace(b"utf-8", b"utf-7f"),
    ],
)
def test_what_cannot_be_read_is_damaged(tmp_path, damage):
    path = tmp_path / "program.mo"
    raw = catalogue({"Open": "Öffnen"})
    assert damage(raw) != raw
    path.write_bytes(damage(raw))
    with pytest.raises(Damaged, match=r"program\.mo"):
        read_catalogue(path)


def test_languages_are_folders_that_have_catalogues(tmp_path):
    write_catalogue(tmp_path, "de", "b", {})
    write_catalogue(tmp_path, "de", "a", {})
    write_catalogue(tmp_path, "pt_BR", "a", {})
    (tmp_path / "fr" / "LC_MESSAGES").mkdir(parents=True)
    assert languages(tmp_path) == ["de", "pt_BR"]
    assert list(catalogue_paths(tmp_path, "de")) == ["a", "b"]
    assert catalogue_paths(tmp_path, "fr") == {}


def machine_catalogues():
    """A few large ones of languages with one, two and more plural forms."""
    found = [path for name in ("ja", "de", "ru", "ar") for path in catalogue_paths(SYSTEM, name).values()]
    return sorted(found, key=lambda path: -path.stat().st_size)[:8]


@pytest.mark.skipif(not machine_catalogues(), reason="this machine has no catalogues of ja, de, ru or ar")
def test_the_standard_library_reads_the_same_translations():
    compared = plurals = 0
    for path in machine_catalogues():
        with path.open("rb") as file:
            library = gettext.GNUTranslations(file)
        identity = ""
        for message in read_catalogue(path):
            if message.form == 0:
                identity = f"{message.context}\x04{message.text}" if message.context else message.text
                assert message.translation in (library.gettext(identity), library.ngettext(identity, "", 1))
                compared += 1
            else:  # the library knows a plural by its singular and a number only
                forms = Counter(library.ngettext(identity, "", number) for number in range(2, 101))
                assert forms[message.translation] == max(forms.values())
                plurals += 1
    assert compared > 1000
    assert plurals > 10
