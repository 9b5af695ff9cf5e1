"""Catalogues written by hand, after the manual of GNU gettext, "The Format of GNU MO Files"."""

import struct

HEADER = "Content-Type: text/plain; charset={charset}\nPlural-Forms: nplurals=2; plural=n != 1;\n"


def catalogue(messages, header=HEADER, charset="utf-8", order="<"):
    """Bytes of a .mo file from {msgid: msgstr}; a context ends with \\x04, plural forms have \\0 between them."""
    if header is not None:
        messages = {"": header.format(charset=charset), **messages}
    ids, texts = [[text.encode(charset) for text in side] for side in (messages.keys(), messages.values())]
    count = len(ids)
    at = 28 + 16 * count
    tables, strings = [], []
    for text in [*ids, *texts]:
        tables.append(struct.pack(f"{order}2I", len(text), at))
        strings.append(text + b"\0")
        at += len(text) + 1
    head = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, at)
    return head + b"".join(tables) + b"".join(strings)


def write_catalogue(root, language, program, messages, **others):
    """A catalogue in its place below `root`."""
    path = root / language / "LC_MESSAGES" / f"{program}.mo"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(catalogue(messages, **others))
    return path
