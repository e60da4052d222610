"""The page of a test: one file that needs nothing beside itself and asks for nothing.

The folder of a test's report: the page, and its pictures as files too.

C classes, T frames, H W pixels.

What a classifier costs with other shares of the tokens than it was trained with: EVEREST Table 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from everest.data.classes import Classes
from everest.data.dataset import VideoClips
from everest.figures.pictures import jpeg_uri, png_uri
from everest.inference.accuracy import HeadScores, Scores, summary_rows, sweep_table
from everest.inference.confusion import (
    NUMBERED,
    ClassResult,
    Mistake,
    class_results,
    count_confusions,
    draw_confusion,
    draw_sweep,
    surest_mistakes,
)
from everest.models.cost import count_tokens, gmacs_of_clip
from everest.models.spec import ModelSpec
from everest.system.files import write_text


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
        loader=PackageLoader("everest.inference", ""), autoescape=True, undefined=StrictUndefined
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


PAGE: Final = "index.html"
SWEEP: Final = "sweep.png"
MISTAKES: Final = 12  # shown of a head
STRIP: Final = 480  # pixels, the width of a mistake's three frames


def write_report(
    folder: Path, result: dict[str, Any], scores: Scores, classes: Classes, clips: VideoClips
) -> Path:
    """Write the page and its pictures; the path of the page.

    Args:
        result: the document of `everest eval --json`.
        clips: what was tested: the mistakes are read again to be shown.
    """
    count, crops = result["views"]["clips"], result["views"]["crops"]
    shown = count // 2 * crops + crops // 2  # the middle crop of the middle clip
    places = {sample.video_id: place for place, sample in enumerate(clips.samples)}

    def strip(video: str) -> str:
        return _strip(clips.read((0, places[video])).frames[shown])

    heads = [
        _head(folder, name, head, scores.videos, classes, strip) for name, head in scores.by_head().items()
    ]
    picture = None
    (folder / SWEEP).unlink(missing_ok=True)  # of an earlier test
    if "sweep" in result:
        draw_sweep(folder / SWEEP, result["sweep"])
        picture = png_uri(folder / SWEEP)
    page = render_page(result, heads, skipped=scores.skipped, sweep_picture=picture)
    write_text(folder / PAGE, page)
    return folder / PAGE


def _head(
    folder: Path,
    name: str,
    head: HeadScores,
    videos: Sequence[str],
    classes: Classes,
    strip: Callable[[str], str],
) -> HeadPart:
    counts = count_confusions(head)  # (C, C)
    names = [classes.name(label) for label in range(len(counts))]
    confusion = folder / (f"confusion-{quote(name, safe='')}.png" if name else "confusion.png")
    draw_confusion(confusion, counts, names)
    mistakes = surest_mistakes(head, videos, names, most=MISTAKES)
    return HeadPart(
        name=name,
        classes=class_results(counts, names),
        confusion=png_uri(confusion),
        mistakes=[(mistake, strip(mistake.video)) for mistake in mistakes],
    )


def _strip(view: Tensor) -> str:
    """First, middle and last frame of a view (3, T, H, W) side by side."""
    frames = view.movedim(0, -1)  # (T, H, W, 3)
    chosen = [frames[number] for number in (0, len(frames) // 2, -1)]
    return jpeg_uri(torch.cat(chosen, dim=1), longest=STRIP)


def share_cost(spec: ModelSpec, keep: float) -> dict[str, Any]:
    """The tokens that a share leaves, and the GMACs of one view, which the papers call GFLOPs.

    Raises:
        RecipeError: it leaves none.
    """
    tried = replace(spec, selection=spec.selection.at_evaluation(keep))
    return {
        "keep": keep,
        "tokens": count_tokens(tried).visible,
        "gmacs": round(gmacs_of_clip(tried), 4),
    }
