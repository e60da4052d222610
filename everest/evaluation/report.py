"""The report of an evaluation: a folder with one HTML page that loads no other file, and its plots as files.

C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from everest.data.dataset import VideoClips
from everest.evaluation.metric_text import (
    fact_rows,
    metric_rows,
    nearest_texts,
    percent,
    sweep_table,
    views_text,
)
from everest.evaluation.plots import LONGEST_NAME, NUMBERED
from everest.evaluation.sections import Section, make_section
from everest.figures.drawing import jpeg_uri, render
from everest.lists.classes import Classes
from everest.metrics.intervals import FEW_GROUPS, FEW_OF_CLASS
from everest.metrics.predicted import Predictions
from everest.system.files import write_text
from everest.system.text import escape_bytes

PAGE: Final = "index.html"
STRIP: Final = 480  # pixels, the width of a video's three frames


def write_report(
    folder: Path, result: dict[str, Any], predictions: Predictions, classes: Classes, clips: VideoClips
) -> Path:
    """Write the plots and then the page; return the path of the page.

    Args:
        result: the document of `everest eval --json`.
        clips: the evaluated videos; the worst ones are read again for the page.
    """
    views = result["views"]
    middle = views["clips"] // 2 * views["crops"] + views["crops"] // 2  # the middle crop of the middle clip
    indices = {sample.video_id: index for index, sample in enumerate(clips.samples)}

    def frames_of(video: str) -> str:
        view = clips.read((0, indices[video])).frames[middle].movedim(0, -1)  # (T, H, W, C)
        frames = torch.cat([view[0], view[len(view) // 2], view[-1]], dim=1)  # (H, 3 W, C)
        return jpeg_uri(frames, longest=STRIP)

    sections = [
        make_section(
            folder, head, videos=predictions.videos, names=classes.of_head(head.head), frames_of=frames_of
        )
        for head in predictions.by_head().values()
    ]
    sweep = None
    if "sweep" in result:
        columns, rows = sweep_table(result["sweep"])
        sweep = {"columns": columns, "rows": rows}
    write_text(folder / PAGE, escape_bytes(render_page(result, sections, predictions, sweep)))
    return folder / PAGE


def render_page(
    result: dict[str, Any],
    sections: Sequence[Section],
    predictions: Predictions,
    sweep: Mapping[str, Any] | None,
) -> str:
    """Return the HTML of a report.

    Args:
        sections: of the heads.
        sweep: the table of several keep ratios.
    """
    return render(
        "evaluation",
        "page.html",
        title=f"Evaluation of {result['checkpoint']}",
        views=views_text(result),
        metrics=metric_rows(result),
        groups=result["groups"],
        drawn="groups of videos" if result["groups"] < result["videos"] else "videos",
        few_groups=FEW_GROUPS,
        few_of_class=FEW_OF_CLASS,
        tasks={head.task for head in predictions.heads},
        facts=[(name, value) for name, value in fact_rows(result) if name != "checkpoint"],
        nearest=list(nearest_texts(result.get("nearest", {"": result}))),
        sweep=sweep,
        heads=sections,
        skipped=predictions.skipped,
        few_classes=NUMBERED,
        longest_name=LONGEST_NAME,
        percent=percent,
    )
