"""The classes or numbers of windows that slide over long footage, and the bouts that follow from them.

W windows, V views, C channels, T frames, H W pixels, F frames of a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import MULTI_LABEL
from everest.inference.bouts import (
    PLAIN,
    BoutRules,
    Window,
    bouts_of_classes,
    merge_windows,
    present_classes,
    smoothed,
)
from everest.inference.model import OpenedModel
from everest.inference.over_videos import check_batch
from everest.inference.predictions import check_windows, damage_of, window_clips, windows_of
from everest.inference.top_classes import answers_of, answers_of_head, check_options
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.video.reader import VideoError, frame_times, repairs

WindowViews = tuple[Window, Tensor]  # (V, C, T, H, W) uint8


def predict_timeline(
    model: OpenedModel,
    samples: Sequence[Sample],
    *,
    window: float | None,
    step: float | None,
    top: int | None,
    batch: int,
    report: Report,
    rules: BoutRules = PLAIN,
) -> list[dict[str, Any]]:
    """Return the `top` most likely classes of every window of every video or segment, and their bouts.

    Args:
        window: seconds; None: the length of a clip at the model's stride.
        step: seconds from the start of one window to the start of the next; None: `window`.
        top: number of classes; None: 5, and all that are present of several.
        batch: windows in one forward pass.
        rules: of the bouts; the windows have the model's probabilities as they are.
    Returns:
        `{"video", "windows": [{"start", "end", "predictions" or "heads"}, …], "bouts": […]}` for each, in the
        order given; see `merge_windows` and `bouts_of_classes` for the bouts, which several heads have by
        name. Numbers have none. A video that is unreadable, or damaged, also has `error` with the reason;
        damaged windows are left out.
    """
    classes = model.classes
    check_options(classes.heads, top=top, rules=rules)
    check_batch(batch)
    check_windows(model.views, window=window, step=step)
    rows = []
    for sample in samples:
        row: dict[str, Any] = {"video": sample.video_id, "windows": []}
        rows.append(row)
        windows: list[Window] = []
        means: list[Tensor] = []  # (outputs,) of each intact window
        times = np.zeros(0)  # (F,) seconds
        try:
            times = frame_times(sample.video)
            for text in repairs(sample.video):
                report(notice(text))
            planned = windows_of(sample, model.views, window=window, step=step)
            clips = window_clips(sample.video, planned, model.views)
            intact = ((at, clip) for at, clip in zip(planned, clips, strict=True) if clip is not None)
            for part in _batches(intact, batch):
                outputs = _mean_answers(model, torch.stack([views for _, views in part]))
                means += outputs
                windows += [current for current, _ in part]
                row["windows"] += [
                    {
                        "start": round(current.start, 3),
                        "end": round(current.end, 3),
                        **answers_of(mean, classes, top),
                    }
                    for (current, _), mean in zip(part, outputs, strict=True)
                ]
                report({"event": "window", "done": len(means), "windows": len(planned)})
            problem = damage_of(sample, planned, set(planned).difference(windows))
            if problem is not None:
                raise VideoError(sample.video, problem)
        except VideoError as error:
            row["error"] = error.reason
            report(notice(str(error)))
        bouts = _bouts(windows, means, times, classes, rules)
        row["bouts"] = bouts.get("", bouts)
    return rows


def _mean_answers(model: OpenedModel, views: Tensor) -> Tensor:
    """The answers (W, outputs) for the views (W, V, C, T, H, W) of windows."""
    return model.mean_answers(model.answers(views.flatten(0, 1)).unflatten(0, views.shape[:2]))


def _bouts(
    windows: Sequence[Window],
    means: Sequence[Tensor],
    times: NDArray[np.float64],
    classes: Classes,
    rules: BoutRules,
) -> dict[str, list[dict[str, Any]]]:
    """Return the bouts of a video by head; the only head has no name.

    Args:
        means: W of (outputs,).
        times: (F,) seconds.
    """
    bouts: dict[str, list[dict[str, Any]]] = {}
    outputs = torch.stack(list(means)) if windows else torch.zeros(0, classes.count)
    if rules.smooth and windows:
        outputs = smoothed(windows, outputs, rules.smooth)
    parts = outputs.split([head.outputs for head in classes.heads], dim=1)
    for head, part in zip(classes.heads, parts, strict=True):  # part: (W, outputs of the head)
        if head.task == "regression":
            bouts[head.name] = []
        elif head.task == MULTI_LABEL:
            own = torch.tensor(head.thresholds)
            high, low = (own, own) if rules.threshold is None else map(torch.tensor, rules.threshold)
            present = present_classes(windows, part, high, low)
            bouts[head.name] = bouts_of_classes(
                windows, part, present, classes.of_head(head), times, min_seconds=rules.min_seconds
            )
        else:
            best = [answers_of_head(row, head, classes, top=1)[0] for row in part]
            bouts[head.name] = merge_windows(
                windows, best, times, background=rules.background, min_seconds=rules.min_seconds
            )
    return bouts


def _batches(pairs: Iterator[WindowViews], size: int) -> Iterator[list[WindowViews]]:
    """Yield `size` windows at a time; windows before an undecodable frame are yielded before its error."""
    held: list[WindowViews] = []
    problem: VideoError | None = None
    try:
        for pair in pairs:
            held.append(pair)
            if len(held) == size:
                yield held
                held = []
    except VideoError as error:
        problem = error
    if held:
        yield held
    if problem is not None:
        raise problem
