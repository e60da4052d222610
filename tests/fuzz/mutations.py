"""Small damages to bytes, text and trees of JSON or YAML values. All take their choices from a `Random`."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

NASTY_TEXTS = (
    *("", " ", "\t", "~", "null", "on", "nan", "-inf", "1e3", "0x10", "010", "1_000", "12:30", "2026-01-01"),
    *("\x00", "\x1b[31m", "\u202e", "\ufeff", "é", "e\u0301", "😀", "視頻", "[red]", "%s", "{x}", "a\nb"),
    *("..", "/", "../../x", "~/x", "-", "--help", "$HOME", "C:\\x", "s3://", "http://[", "hf:", "file://x"),
    *("x" * 300, "y" * 5000, "1" * 400, "(" * 200, ",", ";", '"', "'", '"a', "#", ": ", "- ", "|", "@", "`"),
)
NASTY_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30),
    *(-(2**31), -(2**63), 10**400, 0.0, -0.0, 0.5, 1.5, 1e-45, 1e-320, 1e38, 3.5e38, 1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), -0.5, 1.0000001, 0.1, 0.3, 0.999999999),
)
NASTY_VALUES = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": 1}}, [1, 2, 3], [0], "a", ["a"]),
)


def nasty(rng: Random) -> Any:
    """A value that a program may not expect."""
    return copy.deepcopy(rng.choice(rng.choice((NASTY_TEXTS, NASTY_NUMBERS, NASTY_NUMBERS, NASTY_VALUES))))


def damage_bytes(rng: Random, data: bytes, *, most: int = 4) -> bytes:
    """One to `most` flips, cuts, insertions, repetitions or exchanges of bytes."""
    for _ in range(rng.randint(1, most)):
        data = rng.choice(_BYTE_DAMAGES)(rng, data)
    return data


def damage_content(rng: Random, file: Path) -> None:
    """Damage the bytes of a file."""
    file.write_bytes(damage_bytes(rng, file.read_bytes()))


def remove_file(rng: Random, file: Path) -> None:
    file.unlink()


def replace_by_folder(rng: Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def damage_text(rng: Random, text: str) -> bytes:
    """One to three changes of lines or words, sometimes in another encoding or with damaged bytes."""
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(_TEXT_DAMAGES)(rng, text)
    draw = rng.random()
    if draw < 0.05:
        return text.encode("utf-16", errors="surrogatepass")
    if draw < 0.1:
        return text.encode("latin-1", errors="replace")
    if draw < 0.15:
        return b"\xef\xbb\xbf" + text.encode()
    return damage_bytes(rng, text.encode(), most=2) if draw < 0.3 else text.encode()


def damage_tree(rng: Random, value: Any, *, most: int = 3) -> Any:
    """A copy with one to `most` nodes replaced, removed, renamed, wrapped, exchanged or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        holder = {"root": value}
        parent, key = rng.choice(list(_places(holder)))
        rng.choice(_TREE_DAMAGES)(rng, holder, parent, key)
        value = holder.get("root")
    return value


def _places(node: Any) -> Sequence[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    found = [(node, key) for key in keys]
    for key in keys:
        if isinstance(node[key], dict | list):
            found += _places(node[key])
    return found


def _span(rng: Random, data: bytes, *, longest: int = 64) -> tuple[int, int]:
    start = rng.randint(0, max(len(data) - 1, 0))
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, rng.randint(1, longest), len(data))))


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data, longest=8)
    return data[:start] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) * (end - start) + data[end:]


def _random_span(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _delete(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _insert(rng: Random, data: bytes) -> bytes:
    start, _ = _span(rng, data)
    return data[:start] + rng.randbytes(rng.choice((1, 4, 8, 100))) + data[start:]


def _repeat(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 10)) + data[end:]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.choice((0, 1, 8, rng.randint(0, len(data)), rng.randint(0, len(data)), len(data) - 1))]


def _exchange(rng: Random, data: bytes) -> bytes:
    first, second = sorted((_span(rng, data), _span(rng, data)))
    if first[1] > second[0]:
        return data[::-1] if rng.random() < 0.1 else data
    between = data[first[1] : second[0]]
    return data[: first[0]] + data[slice(*second)] + between + data[slice(*first)] + data[second[1] :]


_BYTE_DAMAGES = (_flip, _flip, _flip, _set, _random_span, _delete, _insert, _repeat, _truncate, _exchange)


def _on_lines(change: Callable[[Random, list[str]], list[str]]) -> Callable[[Random, str], str]:
    def on_text(rng: Random, text: str) -> str:
        return "".join(change(rng, text.splitlines(keepends=True) or [""]))

    return on_text


def _drop_line(rng: Random, lines: list[str]) -> list[str]:
    place = rng.randrange(len(lines))
    return lines[:place] + lines[place + 1 :]


def _repeat_line(rng: Random, lines: list[str]) -> list[str]:
    place = rng.randrange(len(lines))
    return lines[:place] + [lines[place]] * rng.choice((2, 2, 3, 50)) + lines[place + 1 :]


def _add_line(rng: Random, lines: list[str]) -> list[str]:
    place = rng.randint(0, len(lines))
    return [*lines[:place], rng.choice(NASTY_TEXTS) + rng.choice(("\n", "\r\n", "\r", "")), *lines[place:]]


def _shuffle_lines(rng: Random, lines: list[str]) -> list[str]:
    rng.shuffle(lines)
    return lines


def _replace_word(rng: Random, text: str) -> str:
    words = text.split(" ")
    words[rng.randrange(len(words))] = str(nasty(rng))
    return " ".join(words)


def _add_text(rng: Random, text: str) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + str(nasty(rng)) + text[place:]


def _exchange_letters(rng: Random, text: str) -> str:
    found = [letter for letter in set(text) if not letter.isalnum()] or [" "]
    return text.replace(rng.choice(sorted(found)), rng.choice((" ", "\t", ",", ";", ":", "\n", "\r\n", "")))


_TEXT_DAMAGES = (
    *(_on_lines(change) for change in (_drop_line, _repeat_line, _add_line, _shuffle_lines)),
    *(_replace_word, _replace_word, _add_text, _add_text, _exchange_letters),
)


def _replace_node(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    parent[key] = nasty(rng)


def _near_number(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    value = parent[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        as_float = float(value) if abs(value) < 1e300 else math.inf  # an integer may have no float
        parent[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, as_float / 3, as_float, str(value))
        )
    else:
        parent[key] = nasty(rng)


def _remove_node(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    del parent[key]


def _rename_key(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    if isinstance(parent, dict) and parent is not root:
        name = str(key)
        wrong = (name + "x", name[:-1], name.upper(), name.replace("_", "-"), rng.choice(NASTY_TEXTS))
        parent[rng.choice(wrong)] = parent.pop(key)
    else:
        parent[key] = nasty(rng)


def _wrap_node(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    for _ in range(rng.choice((1, 1, 2, 30))):
        parent[key] = rng.choice(([parent[key]], {"x": parent[key]}, [parent[key], parent[key]][:2][:1]))


def _add_node(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    value = parent[key]
    if isinstance(value, dict):
        value[rng.choice((*NASTY_TEXTS, "name", "extra", "base"))] = nasty(rng)
    elif isinstance(value, list):
        value.insert(rng.randint(0, len(value)), nasty(rng))
    else:
        parent[key] = [value, nasty(rng)]


def _exchange_nodes(rng: Random, root: dict[str, Any], parent: Any, key: Any) -> None:
    other, other_key = rng.choice(list(_places(root)))
    first, second = copy.deepcopy(parent[key]), copy.deepcopy(other[other_key])
    parent[key], other[other_key] = second, first


_TREE_DAMAGES = (
    *(_replace_node, _replace_node, _replace_node, _near_number, _near_number, _remove_node, _remove_node),
    *(_rename_key, _wrap_node, _add_node, _exchange_nodes),
)
