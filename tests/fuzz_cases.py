"""Damaged, foreign and hostile checkpoint files: how each is made of a whole one."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MANIFEST, INDEX, TRAINING, CONFIG = "manifest.json", "index.json", "training.json", "config.yaml"
RANK_FILE = "rank_00000.safetensors"
JUNK: list[Any] = [
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1.5, -0.0, math.nan, math.inf, "", "x", "../x", "a\nb"),
    *("\ud800", [], {}, [[]], [1, 2, 3], {"a": 1}, [None], [[1, 2]], "9" * 5000),
]

Change = Callable[[Path, random.Random], None]
"""Changes the files of a checkpoint folder."""


def put(path: Path, content: bytes | str) -> None:
    """Write a file anew: the old one may have other names."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def sign(folder: Path, change: Callable[[dict[str, Any]], None] = lambda body: None) -> None:
    """Make the manifest agree with the files as they are; then change it, and sign it."""
    body = json.loads((folder / MANIFEST).read_text())
    body.pop("sha256")
    for name in body["files"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            body["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(body)
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    put(folder / MANIFEST, json.dumps(body))


def in_manifest(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder, draw: sign(folder, lambda body: change(body) and None)


def in_json(name: str, change: Callable[[Any], Any]) -> Change:
    """`change` alters what a JSON file holds; what it returns, if anything, takes its place."""

    def apply(folder: Path, draw: random.Random) -> None:
        value = json.loads((folder / name).read_text())
        changed = change(value)
        put(folder / name, json.dumps(value if changed is None else changed))
        sign(folder)

    return apply


def text_of(name: str, content: bytes | str) -> Change:
    """Another content, signed; the manifest itself is just what it is."""

    def apply(folder: Path, draw: random.Random) -> None:
        put(folder / name, content)
        if name != MANIFEST:
            sign(folder)

    return apply


def in_header(change: Callable[[dict[str, Any]], Any], length: int | None = None) -> Change:
    """Alter the header of a rank's file, or state another length of it."""

    def apply(folder: Path, draw: random.Random) -> None:
        content = (folder / RANK_FILE).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        put(folder / RANK_FILE, (length or len(text)).to_bytes(8, "little") + text + content[8 + size :])
        sign(folder)

    return apply


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Puts a value at a path of keys; `*` is the first key there."""

    def change(tree: Any) -> None:
        *ways, last = path.split("/")
        for way in ways:
            tree = tree[_key(tree, way)]
        tree[_key(tree, last)] = copy.deepcopy(value)

    return change


def _key(tree: Any, way: str) -> Any:
    if way == "*":
        return next(iter(tree)) if isinstance(tree, dict) else 0
    return int(way) if isinstance(tree, list) else way


def anywhere(name: str) -> Change:
    """Something else at a random place of a JSON file, signed: another value, a lost key, a doubled entry."""

    def change(tree: Any, draw: random.Random) -> None:
        while True:
            places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not places:
                return
            place = draw.choice(places)
            inner = tree[place]
            if isinstance(inner, (dict, list)) and inner and draw.random() < 0.85:
                tree = inner
                continue
            match draw.choice(("junk", "junk", "junk", "lost", "doubled", "near")):
                case "lost":
                    del tree[place]
                case "doubled" if isinstance(tree, list):
                    tree.append(copy.deepcopy(inner))
                case "near" if type(inner) in (int, float):
                    tree[place] = inner + draw.choice((-1, 1))
                case _:
                    tree[place] = copy.deepcopy(draw.choice(JUNK))
            return

    def apply(folder: Path, draw: random.Random) -> None:
        if name == MANIFEST:
            sign(folder, lambda body: change(body, draw))
            return
        tree = json.loads((folder / name).read_text())
        change(tree, draw)
        put(folder / name, json.dumps(tree))
        sign(folder)

    return apply


def flip(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    head = draw.random() < 0.3
    content[draw.randrange(min(len(content), 200) if head else len(content))] ^= 1 << draw.randrange(8)
    put(path, bytes(content))


def truncate(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    put(path, path.read_bytes()[: draw.randrange(path.stat().st_size)])


def swap(folder: Path, draw: random.Random) -> None:
    one, other = draw.sample(sorted(folder.iterdir()), 2)
    contents = one.read_bytes(), other.read_bytes()
    put(other, contents[0])
    put(one, contents[1])


def from_the_older(folder: Path, draw: random.Random) -> None:
    older = min(folder.parent.glob("step_*"))
    path = draw.choice(sorted(folder.iterdir()))
    put(path, (older / path.name).read_bytes())


def lost(folder: Path, draw: random.Random) -> None:
    draw.choice(sorted(folder.iterdir())).unlink()


def grown(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    put(path, path.read_bytes() + draw.randbytes(draw.choice((1, 100, 100_000))))


def instead(name: str, make: Callable[[Path], None]) -> Change:
    """Something that is no regular file in the place of a file."""

    def apply(folder: Path, draw: random.Random) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def signed(change: Change) -> Change:
    """The same with hashes that agree."""

    def apply(folder: Path, draw: random.Random) -> None:
        manifest = (folder / MANIFEST).read_bytes()
        change(folder, draw)
        put(folder / MANIFEST, manifest)
        sign(folder)

    return apply


def outside(folder: Path, draw: random.Random) -> None:
    """A rank's file lies beside the folder; index and manifest say so."""
    name = f"../{RANK_FILE}"
    put(folder.parent / RANK_FILE, (folder / RANK_FILE).read_bytes())
    put(folder / INDEX, (folder / INDEX).read_text().replace(RANK_FILE, name))
    sign(folder, lambda body: body["files"].update({name: body["files"].pop(RANK_FILE)}))


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
DEEP = "[" * 100_000
CONFIGS: dict[str, bytes | str] = {
    "a bomb": BOMB,
    "deep": DEEP,
    "itself": "a: &a [*a]",
    "no mapping": "- 1",
    "binary": b"\0\xff",
    "of another program": "name: x\nnonsense: 1\n",
    "based on a device": "base: /dev/zero\n",
    "no number": "a: !!int x\n",
    "no hexadecimal number": "a: 0x_\n",
    "of 2 MiB": f"name: {'x' * 2**21}\n",
}
SPECIALS: list[tuple[str, Callable[[Path], None]]] = [
    ("link to a device", lambda path: path.symlink_to("/dev/zero")),
    ("link", lambda path: path.symlink_to("tokenizer.model")),
    ("pipe", os.mkfifo),
    ("folder", Path.mkdir),
]
VALUES = {
    MANIFEST: {
        "step": [-4, "4", 4.0, True, None, 5, 10**400, []],
        "layout": [None, [], {"precision": "fp8"}, {"processes": "2"}, {"pipeline_stages": -1}, {"a": {}}, {"a\n": 1}],
        "files": [None, {}, [], {"": {"bytes": 1, "sha256": "0" * 64}}, {"a/b": {"bytes": 1, "sha256": "0" * 64}}],
        f"files/{INDEX}": [None, {}, {"bytes": True, "sha256": "0" * 64}, {"bytes": -1, "sha256": "0" * 64}],
        f"files/{INDEX}/bytes": [-1, 1.0, 2**62, 10**400, None],
        f"files/{INDEX}/sha256": [None, 3, "", "0" * 63, "Z" * 64],
        "version": [True, 2, "1", None, 1.0],
        "format": [None, "x\ny", 3, "\ud800"],
    },
    INDEX: {
        "tensors": [None, [], {}, {"a": {"shape": [], "pieces": []}}, {"a\n": {"shape": [1], "pieces": []}}],
        "tensors/*": [None, {}, {"shape": [3]}, {"pieces": []}],
        "tensors/*/shape": [[-1], [2**40], [2**20, 2**20], [True], [1.0], "x", None, [1] * 200, [10**400], [0], []],
        "tensors/*/pieces": [[], None, [{}], [None], {}, "x"],
        "tensors/*/pieces/0/range": [
            [0, -1],
            [-5, 5],
            [0, 10**18],
            [0],
            [0, 1, 2],
            None,
            ["0", "1"],
            [0.0, 1.0],
            [3, 1],
        ],
        "tensors/*/pieces/0/at": [-1, 2**62, True, None, "0", 1.5, 10**400, 3],
        "tensors/*/pieces/0/file": [
            f"../{RANK_FILE}",
            "/etc/passwd",
            TRAINING,
            "",
            None,
            3,
            ".",
            "rank_00001.safetensors",
        ],
        "tensors/*/pieces/0/box": [
            *(None, {}, {"offset": [0], "size": [1]}, {"offset": [0] * 9, "size": [1] * 9}),
            *(
                {"offset": [-1, 0], "size": [1, 1]},
                {"offset": [0, 0], "size": [2**40, 2**40]},
                {"offset": "x", "size": []},
            ),
        ],
    },
    TRAINING: {
        "progress": [None, [], {}, "x"],
        "progress/step": [-1, "4", True, 3, None, 4.0],
        "progress/samples": [-1, 1.5, 2**70, True, None, "x"],
        "progress/tokens": [math.nan, 2**64, [], -3],
        "progress/seconds": [math.nan, math.inf, -1.0, "x", None],
        "progress/loss": ["x", [], True, math.nan],
        "progress/load_state_dict": [3],
        "data": [None, [], {}, 5],
        "data/samples_consumed": [-1, 1e3, 2**70, True, None, "x", 2**53],
        "data/skip_ranges": [
            None,
            {},
            [[0]],
            [[5, 2]],
            [[0, 2**60]],
            [[0, 2**53]],
            [["a", "b"]],
            [[1, 2, 3]],
            [0],
            "x",
        ],
        "data/fingerprint": [None, 3, "", "x\ny", [], {}],
        "optimizer_steps": [-1, "4", True, None, 2**70, math.nan, 10**400],
        "loss_scaler": [None, [], {"cur_scale": "x"}, {"__class__": 3}, "x"],
        "callbacks": [None, [], {}, {"Policy": None}, {"Policy": []}, {"Nobody": {}}, 3],
        "callbacks/Policy/rate": [None, [], [1, 2], ["a", 0, 0], [1.0, -1, 0], {}],
        "callbacks/Continuity": [
            {"step": 5, "loss": "x"},
            {"step": 5},
            {"step": 5, "loss": None},
            {"step": 5, "loss": 1e9},
        ],
        "callbacks/Checkpoints/saved_step": ["x", None, -1, 2**70, []],
        "callbacks/Metrics/spike_score": [None, [], {"losses": ["x"]}, {"losses": None}, {"losses": [[1]]}],
        "callbacks/Verdicts/history": [
            *(None, {"zeros": {"encoder": [1]}, "gradients": {"encoder": [[1.0]]}}),
            *({"gradients": {"encoder": [[1], ["x"]]}}, {"update": [1]}, {"zeros": {"a": [-1]}}),
        ],
        "callbacks/DepthSignals": [
            *(None, {"NormInputs": {"first": {"a": [1.0]}}}),
            *({"NormInputs": []}, {"NormInputs": {"first": {"a": "x"}}}, {"ModelUpdate": {"probe": 3}}),
        ],
        "callbacks/Evaluation/validation_loss": ["x", [], True],
    },
}
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no moments": lambda header: header.pop("exp_avg"),
    "bytes as weights": lambda header: header["weight"].update(dtype="U8"),
    "an unknown dtype": lambda header: header["weight"].update(dtype="F64"),
    "a shape that does not fit": lambda header: header["weight"].update(shape=[2**50]),
    "offsets beyond the file": lambda header: header["weight"].update(data_offsets=[0, 2**50]),
    "offsets backwards": lambda header: header["weight"].update(data_offsets=[8, 0]),
    "offsets of text": lambda header: header["weight"].update(data_offsets=["0", "8"]),
    "overlap": lambda header: header["weight"].update(data_offsets=header["exp_avg"]["data_offsets"]),
    "an entry that is none": lambda header: header.update(weight=[]),
    "metadata of numbers": lambda header: header.update(__metadata__={"pieces": 3}),
    "the generator's state renamed": lambda header: header.update(rng=header.pop("rng_torch")),
    "deep": lambda header: header.update(deep=json.loads("[" * 500 + "]" * 500)),
}


def cases(seed: int) -> Iterator[tuple[str, bool, Change]]:
    """Name, whether a checkpoint that still is whole must hold what it held, and what changes it."""
    for number in range(25):
        yield f"flip {number}", True, flip
        if number < 12:
            yield f"truncate {number}", True, truncate
            yield f"swap {number}", True, swap
        if number < 6:
            yield f"lost {number}", True, lost
            yield f"grown {number}", True, grown
            yield f"a file of the older one {number}", True, from_the_older
            for change in (flip, truncate, swap, from_the_older):
                yield f"{change.__name__}, signed {number}", False, signed(change)
    for number in range(25):
        for name in (MANIFEST, INDEX, TRAINING):
            yield f"anywhere in {name} {number}", False, anywhere(name)
    for name, paths in VALUES.items():
        for path, values in paths.items():
            for value in values:
                change = setting(path, value)
                altered = in_manifest(change) if name == MANIFEST else in_json(name, change)
                yield f"{name}: {path} = {ascii(value)[:100]}", False, altered
    for name in (MANIFEST, INDEX, TRAINING, CONFIG, RANK_FILE):
        for what, make in SPECIALS:
            yield f"{name} is a {what}", False, instead(name, make)
    for name in (MANIFEST, INDEX, TRAINING):
        for what, content in (("nested deep", DEEP), ("of 24 MiB", "[]," * 2**23)):
            yield f"{name} {what}", False, text_of(name, content)
    for what, config in CONFIGS.items():
        yield f"{CONFIG} is {what}", False, text_of(CONFIG, config)
    for what, edit in HEADERS.items():
        yield f"{RANK_FILE}: {what}", False, in_header(edit)
    for length in (1, 2**40, 2**64 - 1):
        yield f"{RANK_FILE}: a header of {length} bytes", False, in_header(lambda header: None, length)
    yield f"{RANK_FILE} lies outside", False, outside
