"""The classes or numbers of windows that slide over long footage, and the bouts that follow from them.

W windows, V views, C channels, T frames, H W pixels, F frames of a video.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.annotations.bout import BACKGROUND
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
from everest.inference.idle import (
    IdleRules,
    audited,
    check_audit,
    have_class,
    idle_text,
    most_bouts,
    window_motion,
)
from everest.inference.model import OpenedModel
from everest.inference.over_videos import check_batch
from everest.inference.predictions import check_windows, window_clips, windows_of
from everest.inference.top_classes import answers_of, answers_of_head, check_options
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.video.reader import VideoError, frame_times

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
            0.001 or not finite, or `batch` is below 1; clips of one frame with `idle`; see also
            `check_options` and `check_audit`.
    """
    classes = model.classes
    check_options(classes.heads, top=top, rules=rules, idle=idle is not None)
    if idle is not None and idle.audit:
        check_audit(classes, rules)
    if idle is not None and model.views.frames == 1:
        raise RecipeError(
            "--idle-below: the clips of this model have one frame, which shows no motion; leave it out"
        )
    check_batch(batch)
    check_windows(model.views, window=window, step=step)
    rows = []
    for sample in samples:
        row: dict[str, Any] = {"video": sample.video_id, "windows": []}
        rows.append(row)
        run = _RunWindows()
        try:
            run.times = frame_times(sample.video)
            run.windows = windows_of(sample, model.views, window=window, step=step)
            clips = window_clips(sample.video, run.windows, model.views)
            for part in _batches(zip(run.windows, clips, strict=True), batch):
                row["windows"] += run.add(model, part, idle, top)
                report({"event": "window", "done": len(row["windows"]), "windows": len(run.windows)})
        except VideoError as error:
            row["error"] = error.reason
            report(notice(str(error)))
        del run.windows[len(row["windows"]) :]  # those after damage
        bouts = _bouts(run, classes, rules)
        row["bouts"] = bouts.get("", bouts)
        if idle is not None and run.windows:
            row["idle"] = _idle(model, sample, run, bouts, rules, idle)
            report(notice(idle_text(row["video"], row["idle"])))
    return rows


@dataclass(eq=False)
class _RunWindows:
    """The windows of a video, and the answers for those that the network has seen."""

    windows: list[Window] = field(default_factory=list)
    times: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # (F,) seconds of the frames
    answers: list[Tensor] = field(default_factory=list)  # (outputs,) of each window; zeros if it was skipped
    ran: list[bool] = field(default_factory=list)
    network: float = 0.0  # seconds

    def add(
        self, model: OpenedModel, part: Sequence[WindowViews], idle: IdleRules | None, top: int | None
    ) -> list[dict[str, Any]]:
        """Compute some windows, except those in which nothing moves; returns their rows."""
        views = torch.stack([clip for _, clip in part])  # (W, V, C, T, H, W)
        motion = torch.zeros(len(part)) if idle is None else window_motion(views)  # (W,)
        runs = motion >= (0.0 if idle is None else idle.below)
        means = torch.zeros(len(part), model.classes.count)
        began = time.perf_counter()
        if runs.any():
            means[runs] = _mean_answers(model, views[runs])
        self.network += time.perf_counter() - began
        self.answers += means
        self.ran += runs.tolist()
        skipped = {"heads": {}} if model.classes.heads[0].name else {"predictions": []}
        rows = []
        for (current, _), mean, has_run, change in zip(part, means, runs, motion, strict=True):
            row: dict[str, Any] = {"start": round(current.start, 3), "end": round(current.end, 3)}
            if idle is not None:
                row["motion"] = round(change.item(), 3)
            rows.append(row | (answers_of(mean, model.classes, top) if has_run else skipped))
        return rows


def _mean_answers(model: OpenedModel, views: Tensor) -> Tensor:
    """The answers (W, outputs) for the views (W, V, C, T, H, W) of windows."""
    return model.mean_answers(model.answers(views.flatten(0, 1)).unflatten(0, views.shape[:2]))


def _bouts(run: _RunWindows, classes: Classes, rules: BoutRules) -> dict[str, list[dict[str, Any]]]:
    """Return the bouts of a video by head; the only head has no name. Skipped windows have no class."""
    bouts: dict[str, list[dict[str, Any]]] = {}
    windows, times, ran = run.windows, run.times, torch.tensor(run.ran, dtype=torch.bool)
    outputs = torch.stack(run.answers) if windows else torch.zeros(0, classes.count)
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
    run: _RunWindows,
    bouts: Mapping[str, list[dict[str, Any]]],
    rules: BoutRules,
    idle: IdleRules,
) -> dict[str, Any]:
    """Return `idle` of a video's row; runs some of the skipped windows, drawn at random, to audit them.

    Args:
        bouts: of the video, by head.
    """
    windows, skipped = run.windows, np.flatnonzero(~np.array(run.ran))
    num_run = len(windows) - len(skipped)
    saved = round(run.network / num_run * len(skipped), 3) if num_run else None
    document: dict[str, Any] = {"below": idle.below, "windows": len(windows), "skipped": len(skipped)}
    document["seconds_saved"] = saved
    if idle.audit and len(skipped):
        rng = np.random.default_rng(0)
        drawn = np.sort(rng.choice(skipped, size=min(idle.audit, len(skipped)), replace=False))
        clips = window_clips(sample.video, [windows[number] for number in drawn], model.views)
        classes = model.classes
        with_class = sum(
            int(have_class(_mean_answers(model, clip[None]), classes, rules).item()) for clip in clips
        )
        labels = [bout["label"] for of_head in bouts.values() for bout in of_head]
        num_bouts = sum(label not in (None, BACKGROUND) for label in labels)
        most = most_bouts(classes)
        document["audit"] = audited(with_class, len(drawn), skipped=len(skipped), bouts=num_bouts, most=most)
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
