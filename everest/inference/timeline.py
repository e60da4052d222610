"""The classes or numbers of windows that slide over long footage, and the bouts that follow from them.

W windows, V views, C channels, T frames, H W pixels, F frames of a video.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import MULTI_LABEL
from everest.errors import RecipeError
from everest.inference.bouts import (
    PLAIN,
    BoutRules,
    Window,
    bouts_of_classes,
    merge_windows,
    present_classes,
    smoothed,
)
from everest.inference.idle import IdleRules, audited, check_audit, have_class, idle_text, window_motion
from everest.inference.model import OpenedModel
from everest.inference.over_videos import check_batch
from everest.inference.predictions import check_seconds, window_clips, windows_of
from everest.inference.top_classes import answers_of, answers_of_head, check_options
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.metrics.timeline import BACKGROUND
from everest.system.events import Report, notice
from everest.video.reader import VideoError, frame_times

SKIPPED: Final[dict[str, Any]] = {"predictions": []}  # of a window in which nothing moves
NO_CLASS: Final[dict[str, Any]] = {"label": None, "index": None, "probability": 0.0}

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
    idle: IdleRules | None = None,
) -> list[dict[str, Any]]:
    """Return the `top` most likely classes of every window of every video or segment, and their bouts.

    Args:
        window: seconds; None: the length of a clip at the model's stride.
        step: seconds from the start of one window to the start of the next; None: `window`.
        top: number of classes; None: 5, and all that are present of several.
        batch: windows in one forward pass.
        rules: of the bouts; the windows have the model's probabilities as they are.
        idle: skip windows in which nothing moves; None: none.
    Returns:
        `{"video", "windows": [{"start", "end", "predictions" or "heads"}, …], "bouts": […]}` for each, in the
        order given; see `merge_windows` and `bouts_of_classes` for the bouts, which several heads have by
        name. Numbers have none. A video that is unreadable, or damaged at some frame, also has `error` with
        the reason. With `idle`, a window also has its `motion`, a skipped one no predictions, and a video has
        `idle`: `below`, the numbers of `windows` and of those `skipped`, `seconds_saved`, and its `audit`.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: a clip spans the whole video, so there is no default window; `window` or `step` is below
            0.001 or not finite, or `batch` is below 1; see also `check_options` and `check_audit`.
    """
    classes = model.classes
    check_options(classes.heads, top=top, rules=rules, idle=idle is not None)
    if idle is not None and idle.audit:
        check_audit(classes, rules)
    if window is None and model.views.sampling != "dense":
        raise RecipeError("--window: the clips of this model span a whole video; set the seconds of a window")
    check_batch(batch)
    check_seconds(window, step)
    rows, below = [], 0.0 if idle is None else idle.below
    for sample in samples:
        row: dict[str, Any] = {"video": sample.video_id, "windows": []}
        rows.append(row)
        windows, times, network = [], np.zeros(0), 0.0  # network: seconds
        answers, ran = [], []  # of each batch, (W, outputs) and (W,) bool
        try:
            times = frame_times(sample.video)  # (F,)
            windows = windows_of(sample, model.views, window=window, step=step)
            clips = window_clips(sample.video, windows, model.views)
            for part in _batches(zip(windows, clips, strict=True), batch):
                views = torch.stack([clip for _, clip in part])  # (W, V, C, T, H, W)
                motion = torch.zeros(len(part)) if idle is None else window_motion(views)  # (W,)
                runs = motion >= below
                means = torch.zeros(len(part), classes.count)
                began = time.perf_counter()
                if runs.any():
                    means[runs] = _mean_answers(model, views[runs])
                network += time.perf_counter() - began
                for (current, _), mean, has_run, change in zip(part, means, runs, motion, strict=True):
                    found = {"start": round(current.start, 3), "end": round(current.end, 3)}
                    if idle is not None:
                        found["motion"] = round(change.item(), 3)
                    row["windows"].append(found | (answers_of(mean, classes, top) if has_run else SKIPPED))
                answers.append(means)
                ran.append(runs)
                report({"event": "window", "done": len(row["windows"]), "windows": len(windows)})
        except VideoError as error:
            row["error"] = error.reason
            report(notice(str(error)))
        # All windows but those after damage.
        windows, has_run = windows[: len(row["windows"])], torch.cat([*ran, torch.zeros(0).bool()])
        outputs = torch.cat([*answers, torch.zeros(0, classes.count)])
        bouts = _bouts(windows, outputs, has_run, classes, times, rules)
        row["bouts"] = bouts.get("", bouts)
        if idle is not None and windows:
            row["idle"] = _idle(model, sample, windows, has_run, bouts, network, rules, idle)
            report(notice(idle_text(row["video"], row["idle"])))
    return rows


def _mean_answers(model: OpenedModel, views: Tensor) -> Tensor:
    """The answers (W, outputs) for the views (W, V, C, T, H, W) of windows."""
    return model.mean_answers(model.answers(views.flatten(0, 1)).unflatten(0, (len(views), -1)))


def _bouts(
    windows: Sequence[Window],
    outputs: Tensor,
    ran: Tensor,
    classes: Classes,
    times: NDArray[np.float64],
    rules: BoutRules,
) -> dict[str, list[dict[str, Any]]]:
    """Return the bouts of a video by head; the name of the only head is empty.

    Args:
        outputs: (W, outputs).
        ran: (W,) bool; other windows were skipped and have no class.
    """
    bouts: dict[str, list[dict[str, Any]]] = {}
    if rules.smooth and windows:
        outputs = smoothed(windows, outputs, ran, rules.smooth)
    parts = outputs.split([head.outputs for head in classes.heads], dim=1)
    for head, part in zip(classes.heads, parts, strict=True):  # part: (W, outputs of the head)
        if head.task == "regression":
            bouts[head.name] = []
        elif head.task == MULTI_LABEL:
            own = torch.tensor(head.thresholds)
            high, low = (own, own) if rules.threshold is None else map(torch.tensor, rules.threshold)
            present = present_classes(windows, part, high, low) & ran[:, None]
            bouts[head.name] = bouts_of_classes(
                windows, part, present, classes.of_head(head), times, min_seconds=rules.min_seconds
            )
        else:
            best = [
                answers_of_head(row, head, classes, top=1)[0] if has_run else NO_CLASS
                for row, has_run in zip(part, ran.tolist(), strict=True)
            ]
            bouts[head.name] = merge_windows(
                windows, best, times, background=rules.background, min_seconds=rules.min_seconds
            )
    return bouts


def _idle(
    model: OpenedModel,
    sample: Sample,
    windows: Sequence[Window],
    ran: Tensor,
    bouts: Mapping[str, list[dict[str, Any]]],
    network: float,
    rules: BoutRules,
    idle: IdleRules,
) -> dict[str, Any]:
    """Return `idle` of a video's row; runs some of the skipped windows, drawn at random, to audit them.

    Args:
        ran: (W,) bool, the windows that were not skipped; W > 0.
        bouts: of the video, by head.
        network: seconds that the windows took that were not skipped.
    """
    skipped = (~ran).nonzero()[:, 0].numpy()
    num_run = len(windows) - len(skipped)
    saved = round(network / num_run * len(skipped), 3) if num_run else None
    document: dict[str, Any] = {"below": idle.below, "windows": len(windows), "skipped": len(skipped)}
    document["seconds_saved"] = saved
    if idle.audit and len(skipped):
        rng = np.random.default_rng(idle.seed)
        drawn = np.sort(rng.choice(skipped, size=min(idle.audit, len(skipped)), replace=False))
        clips = window_clips(sample.video, [windows[number] for number in drawn], model.views)
        classes = model.classes
        with_class = sum(
            int(have_class(_mean_answers(model, clip[None]), classes, rules).item()) for clip in clips
        )
        labels = [bout["label"] for of_head in bouts.values() for bout in of_head]
        num_bouts = sum(label not in (None, BACKGROUND) for label in labels)
        document["audit"] = audited(with_class, len(drawn), skipped=len(skipped), bouts=num_bouts)
    return document


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
