"""Texts for people: counts of things, and file names that are not UTF-8.

The bytes of such a name are kept by Python as lone surrogates (PEP 383). Lists, CSV files and stdout keep the
bytes (`surrogateescape`), and JSON has them as `\\udcXX`, which Python reads back. Figures, pages and
messages need text; they show `\\xXX`.
"""

from __future__ import annotations

import re
from typing import Final


def counted(number: int, noun: str) -> str:
    """`1 video`, `2 videos`, `1 class`, `2 classes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded, and is not a name that keeps bytes."""
    return _SURROGATE.search(text) is None


def escape_bytes(text: str) -> str:
    r"""The text with `\xXX` for each byte that is not UTF-8: `caf\xe9.mp4`."""
    return _SURROGATE.sub(
        lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}" if found[0] >= "\udc80" else "?", text
    )


def is_file_name(text: str) -> bool:
    """Whether a text can come from a file system: surrogates stand for single bytes that are not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text
    except UnicodeEncodeError:
        return False


def is_plain(name: str) -> bool:
    """Whether a text is the name of a file inside a folder, and no path that may leave it."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0") and is_file_name(name)
