"""The parts of pages that are made from the code when the documentation is built, and links out of it.

A page has the line `<!-- generated: NAME -->` where the part of this name comes. Nothing of it is committed,
so that it cannot be stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from from_api import api_part
from from_commands import commands_part
from from_matrix import backbones_part, weights_part
from from_messages import messages_part
from from_settings import settings_part

PARTS: dict[str, Callable[[], str]] = {
    "api": api_part,
    "backbones": backbones_part,
    "commands": commands_part,
    "messages": messages_part,
    "settings": settings_part,
    "weights": weights_part,
}
MARK = re.compile(r"<!-- generated: (\w+) -->")
# Links to files that are not built: on GitHub a link, here a path.
OUTSIDE = re.compile(r"\[([^]]+)\]\((?:\.\./)+(benchmarks/[^)#]+\.md)[^)]*\)")


def fill(app: Any, page: str, source: list[str]) -> None:
    """Put the parts in place of their marks, and paths in place of links to files that are not built.

    Raises:
        KeyError: a page marks a part that does not exist.
    """
    text = OUTSIDE.sub(r"\1 (`\2`)", source[0])
    source[0] = MARK.sub(lambda mark: PARTS[mark[1]](), text)
