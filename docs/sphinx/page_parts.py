"""The parts of pages that are made from the code, and links out of the documentation.

A page has the part of a name between the lines `<!-- generated: NAME -->` and `<!-- end -->`. The parts are
committed, so that they can be read in the repository: `python docs/sphinx/page_parts.py` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
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
DOCS = Path(__file__).parents[1]
PAGES = (*sorted((DOCS / "reference").glob("*.md")), DOCS / "starting.md")
MARK = re.compile(r"(<!-- generated: (\w+) -->).*?(<!-- end -->)", re.DOTALL)
# Links to files that are not built: on GitHub a link, here a path.
OUTSIDE = re.compile(r"\[([^]]+)\]\((?:\.\./)+(benchmarks/[^)#]+\.(?:md|json))[^)]*\)")


def fill(app: Any, page: str, source: list[str]) -> None:
    """Put the parts in place of their marks, and paths in place of links to files that are not built.

    Raises:
        KeyError: a page marks a part that does not exist.
    """
    text = OUTSIDE.sub(r"\1 (`\2`)", source[0])
    source[0] = MARK.sub(lambda mark: PARTS[mark[2]](), text)


def written(page: str) -> str:
    """The text of a page with its parts made again."""
    return MARK.sub(lambda mark: f"{mark[1]}\n\n{PARTS[mark[2]]()}\n\n{mark[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
