"""The page of a test: one file that needs nothing beside itself and asks for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from everest.eval_report.confusion import ClassResult, Mistake
from everest.eval_report.drawing import NUMBERED
from everest.scores import summary_rows, sweep_table


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """What the page shows of one head. Pictures are addresses that hold them."""

    name: str  # empty for the only head
    classes: Sequence[ClassResult]
    confusion: str
    mistakes: Sequence[tuple[Mistake, str]]


def render_page(
    result: dict[str, Any],
    heads: Sequence[HeadPart],
    *,
    skipped: Sequence[tuple[str, str]],
    sweep_picture: str | None,
) -> str:
    """The HTML.

    Args:
        result: the document of `everest eval --json`.
        skipped: path and reason of what could not be read.
    """
    # Names of classes and paths are a user's: everything is escaped.
    templates = Environment(
        loader=PackageLoader("everest.eval_report", ""), autoescape=True, undefined=StrictUndefined
    )
    sweep = None
    if sweep_picture is not None:
        columns, rows = sweep_table(result["sweep"])
        sweep = {"columns": columns, "rows": rows, "picture": sweep_picture}
    return templates.get_template("page.html").render(
        title=f"Test of {result['checkpoint']}",
        summary=[(name, value) for name, value in summary_rows(result) if name != "checkpoint"],
        sweep=sweep,
        heads=heads,
        skipped=skipped,
        fitting=NUMBERED,
        percent=lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%",
    )
