"""Damaged files, every kind of change to a JSON document and to the bytes of a file; full disks."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 100_000
WRONG = [
    *(None, True, 0, -1, 1, 2**31, 10**30, 0.5, -0.0, float("nan"), float("inf"), 1e300),
    *("", "x", "0", "..", "../x", "/etc/passwd", "a/b", "\0", "\ud800", "\udcff", "é\n", "9" * 200),
    *([], [[]], [None], {}, {"x": {}}, [1] * 5),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> bytes:
    """A document of which some values are replaced, removed, doubled or swapped; or whose text is damaged."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(json.dumps(document).encode()))
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(document))
        if not places:
            break
        *outer, key = draw(st.sampled_from(places))
        parent = document
        for step in outer:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "double"])):
            case "remove":
                del parent[key]
            case "add" if isinstance(parent, dict):
                name = draw(st.sampled_from(["x", "label", "tar", "\ud800"]))
                parent[name] = copy.deepcopy(draw(st.sampled_from(WRONG)))
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                parent[key] = copy.deepcopy(draw(st.sampled_from(WRONG)))
    return json.dumps(document).encode()


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that is cut, has other bytes in some places, or has become another one."""
    kind = draw(st.sampled_from(["cut", "bytes", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if kind == "other" or not content:
        others = [b"", b"\0" * 100, b"[]", b"{}", b"null", b"1e999", b"\xff\xfe", DEEP.encode()]
        return draw(st.sampled_from(others))
    changed = bytearray(content)
    for at in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        changed[at] = draw(st.integers(0, 255))
    return bytes(changed)


def with_hole(video: Path, share: float, file: Path, *, size: int = 60) -> Path:
    """A copy of a video without `size` bytes from a share of it on."""
    content = bytearray(video.read_bytes())
    begin = int(share * len(content))
    content[begin : begin + size] = b"\xff" * size
    file.write_bytes(content)
    return file


def fill(disk: Path) -> Path:
    """Fill a disk; returns the file that does, which can be removed."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast
