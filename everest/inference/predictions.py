"""The most likely classes or the numbers of videos, or of windows that slide over long footage.

A window is processed like a video of its own: the same frames, the same views. Each frame is decoded once,
however much the windows overlap, and dropped after the last window that needs it.

W windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import MULTI_LABEL
from everest.data.footage import footages, segment
from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.inference.bouts import Window, bouts_of_classes, merge_windows
from everest.inference.model import OpenedModel
from everest.inference.over_videos import check_batch, over_videos
from everest.inference.top_classes import answers_of, answers_of_head, check_options
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.video.reader import TOLERANCE, VideoError, frame_range, frame_times, frames_in_order, probe
from everest.video.source import Video

SHORTEST: Final = 0.001  # seconds of a window or a step


def predict(
    model: OpenedModel,
    samples: Sequence[Sample],
    *,
    top: int | None,
    batch: int,
    workers: int,
    report: Report,
) -> list[dict[str, Any]]:
    """Return the `top` most likely classes of every video, by the mean of its views' probabilities.

    Args:
        top: number of classes; None: 5, and all that are present of several.
        batch: videos in one forward pass.
    Returns:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` for each, in the order given; see
        `answers_of` for the predictions of other tasks. With several heads `heads` has such a list for each
        head. An unreadable video has `error` instead.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: `top` is given, and the model predicts numbers only; `top` or `batch` is below 1.
    """
    classes = model.classes
    check_options(classes.heads, top=top)
    batches = over_videos(
        model,
        samples,
        lambda clips: {"answers": model.answers(clips)},
        batch=batch,
        workers=workers,
        report=report,
    )
    return [
        {"video": sample.video_id, "error": values}
        if isinstance(values, str)
        else {"video": sample.video_id, **answers_of(model.mean_answers(values["answers"]), classes, top)}
        for pairs in batches
        for sample, values in pairs
    ]


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
    background: float | None = None,
) -> list[dict[str, Any]]:
    """Return the `top` most likely classes of every window of every video or segment, and their bouts.

    Args:
        window: seconds; None: the length of a clip at the model's stride.
        step: seconds from the start of one window to the start of the next; None: `window`.
        top: number of classes; None: 5, and all that are present of several.
        batch: windows in one forward pass.
        background: windows whose highest probability is below this have no class in `bouts`.
    Returns:
        `{"video", "windows": [{"start", "end", "predictions" or "heads"}, …], "bouts": […]}` for each, in the
        order given; see `merge_windows` and `bouts_of_classes` for the bouts, which several heads have by
        name. Numbers have none. A video that is unreadable, or damaged at some frame, also has `error` with
        the reason.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: a clip spans the whole video, so there is no default window; `window` or `step` is below
            0.001 or not finite, or `batch` is below 1; see also `check_options`.
    """
    classes = model.classes
    check_options(classes.heads, top=top, background=background)
    if window is None and model.views.sampling != "dense":
        raise RecipeError("--window: the clips of this model span a whole video; set the seconds of a window")
    check_batch(batch)
    check_seconds(window, step)
    rows = []
    for sample in samples:
        row: dict[str, Any] = {"video": sample.video_id, "windows": []}
        rows.append(row)
        windows, times, done = [], np.zeros(0), []  # done: (outputs,) of each window
        try:
            times = frame_times(sample.video)  # (F,)
            windows = windows_of(sample, model.views, window=window, step=step)
            clips = window_clips(sample.video, windows, model.views)
            for part in _batches(zip(windows, clips, strict=True), batch):
                views = torch.stack([clip for _, clip in part])  # (W, V, C, T, H, W)
                answers = model.answers(views.flatten(0, 1)).unflatten(0, (len(part), -1))
                means = model.mean_answers(answers)  # (W, outputs)
                for (current, _), mean in zip(part, means, strict=True):
                    seconds = {"start": round(current.start, 3), "end": round(current.end, 3)}
                    row["windows"].append({**seconds, **answers_of(mean, classes, top)})
                    done.append(mean)
                report({"event": "window", "done": len(row["windows"]), "windows": len(windows)})
        except VideoError as error:
            row["error"] = error.reason
            report(notice(str(error)))
        # All windows but those after damage.
        row["bouts"] = _bouts(windows[: len(done)], done, classes, times, background)
    return rows


def check_seconds(window: float | None, step: float | None) -> None:
    """Raise RecipeError for a window or a step that is below 0.001 seconds or not finite."""
    for option, seconds in (("--window", window), ("--step", step)):
        if seconds is not None and not SHORTEST <= seconds < math.inf:
            raise RecipeError(f"{option}: must be a number of seconds from {SHORTEST} on, not {seconds}")


def _bouts(
    windows: Sequence[Window],
    answers: Sequence[Tensor],
    classes: Classes,
    times: NDArray[np.float64],
    background: float | None,
) -> Any:
    """Return the bouts of a video, of several heads by name.

    Args:
        answers: W of (outputs,).
    """
    bouts: dict[str, list[dict[str, Any]]] = {}
    sizes = [head.outputs for head in classes.heads]
    parts = torch.stack(list(answers)).split(sizes, dim=1) if answers else [torch.zeros(0, n) for n in sizes]
    for head, part in zip(classes.heads, parts, strict=True):  # part: (W, outputs of the head)
        if head.task == "regression":
            bouts[head.name] = []
        elif head.task == MULTI_LABEL:
            present = part >= torch.tensor(head.thresholds)
            bouts[head.name] = bouts_of_classes(windows, part, present, classes.of_head(head), times)
        else:
            best = [answers_of_head(row, head, classes, top=1)[0] for row in part]
            bouts[head.name] = merge_windows(windows, best, times, background=background)
    return bouts.get("", bouts)


def windows_of(sample: Sample, views: EvalViews, *, window: float | None, step: float | None) -> list[Window]:
    """Return the windows from the start of a video to its end; the last one ends with the video.

    Windows in which no frame is shown are skipped.

    Raises:
        VideoError: the video is unreadable, or has no times.
    """
    times = frame_times(sample.video)
    fps = probe(sample.video).fps or 1.0
    first, length = segment(sample)
    begin, end = float(times[first]), float(times[first + length - 1] + 1 / fps)
    window = views.frames * views.stride / (views.fps or fps) if window is None else window
    step = window if step is None else step
    count = max(int((end - begin - window) / step + TOLERANCE), 0) + 1  # windows that end within the video
    starts = [begin + number * step for number in range(count)]
    if starts[-1] + window < end - TOLERANCE:
        starts.append(max(end - window, begin))
    windows = []
    for start in starts:
        inside, after = frame_range(times, start, start + window)
        inside, after = max(inside, first), min(after, first + length)
        if inside < after:
            until = min(start + window, end)
            windows.append(Window(start=start, end=until, first=inside, length=after - inside))
    return windows


def window_clips(path: Video, windows: Sequence[Window], views: EvalViews) -> Iterator[Tensor]:
    """Yield the views (V, C, T, H, W) uint8 of each window in turn.

    Raises:
        VideoError: a frame of the next window cannot be decoded.
    """
    spans = [(window.first, window.length) for window in windows]
    needed = [views.windows(footage) for footage in footages(path, spans, views.fps)]  # (clips, T) each
    lowest = np.minimum.accumulate([ids.min() for ids in needed][::-1])[::-1]  # from each window to the end
    wanted = np.unique(np.stack(needed))
    frames = zip(wanted.tolist(), frames_in_order(path, wanted, channels=views.channels), strict=True)
    held: dict[int, Tensor] = {}  # (C, 1, H', W') by number
    for ids, oldest in zip(needed, lowest, strict=True):
        held = {number: frame for number, frame in held.items() if number >= oldest}
        while ids.max() not in held:
            number, frame = next(frames)
            held[number] = views.resized(frame[None])
        numbers, indices = np.unique(ids, return_inverse=True)
        video = torch.cat([held[number] for number in numbers.tolist()], dim=1)  # (C, F, H', W')
        yield torch.stack(views.cut(video, indices))


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
