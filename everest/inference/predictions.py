"""The classes of videos, by the mean of their views' probabilities.

What happens when in long footage: the classes of windows that slide over a video.

A window is seen as a video of its own is: the same frames, the same views. Each frame is decoded once,
however much the windows overlap, and forgotten after the last window that needs it.

W windows, V views, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everest.data.classes import Classes
from everest.data.samples import Sample
from everest.data.views import EvalViews, segment
from everest.errors import RecipeError
from everest.inference.model import OpenedModel, over_videos
from everest.system.events import Report, notice
from everest.video.reader import TOLERANCE, VideoError, frame_range, frame_times, frames_in_order, probe
from everest.video.source import Video


def predict(
    model: OpenedModel, samples: Sequence[Sample], *, top: int, batch: int, workers: int, report: Report
) -> list[dict[str, Any]]:
    """The `top` most likely classes of every video.

    Args:
        batch: videos in one pass.
    Returns:
        `{"video", "predictions": [{"label", "index", "probability"}, …]}` each, in the order given; of
        several heads `heads` has such a list for each; what could not be read has `error` instead.
    Raises:
        CheckpointError: the model is no classifier.
    """
    classes = model.classes
    done = over_videos(
        model,
        samples,
        lambda clips: {"probabilities": model.probabilities(clips)},
        batch=batch,
        workers=workers,
        report=report,
    )
    return [
        {"video": sample.video_id, "error": values}
        if isinstance(values, str)
        else {"video": sample.video_id, **most_likely(values["probabilities"].mean(dim=0), classes, top)}
        for pairs in done
        for sample, values in pairs
    ]


def most_likely(probabilities: Tensor, classes: Classes, top: int) -> dict[str, Any]:
    """`predictions` of (classes,) probabilities, or under `heads` those of each of several."""
    if not classes.heads:
        return {"predictions": _best(probabilities, classes, top)}
    parts = probabilities.split(list(classes.heads.values()))
    return {
        "heads": {name: _best(part, classes, top) for name, part in zip(classes.heads, parts, strict=True)}
    }


def _best(probabilities: Tensor, classes: Classes, top: int) -> list[dict[str, Any]]:
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        {"label": classes.name(index), "index": index, "probability": round(probability, 6)}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a video."""

    start: float  # seconds
    end: float
    first: int  # number of its first frame
    length: int  # frames


Seen = tuple[Window, Tensor]  # and its views (V, 3, T, H, W) uint8


def predict_timeline(
    model: OpenedModel,
    samples: Sequence[Sample],
    *,
    window: float | None,
    step: float | None,
    top: int,
    batch: int,
    report: Report,
) -> list[dict[str, Any]]:
    """The `top` most likely classes of every window of every video or segment.

    Args:
        window: seconds; None: the frames of a clip at the model's stride.
        step: seconds from the start of one window to that of the next; None: `window`.
        batch: windows in one pass.
    Returns:
        `{"video", "windows": [{"start", "end", "predictions" or "heads"}, …]}` each, in the order given;
        where a video cannot be read, or not to its end, `error` says why.
    Raises:
        CheckpointError: the model is no classifier.
        RecipeError: a clip spans the whole video, so that a window has no length of its own.
    """
    classes = model.classes
    if window is None and model.views.sampling != "dense":
        raise RecipeError("--window: the clips of this model span a whole video; say how many seconds")
    told = []
    for sample in samples:
        row: dict[str, Any] = {"video": sample.video_id, "windows": []}
        told.append(row)
        try:
            windows = windows_of(sample, model.views, window=window, step=step)
            clips = window_clips(sample.video, windows, model.views)
            for part in _batches(zip(windows, clips, strict=True), batch):
                for seen, mean in _means(model, part):
                    times = {"start": round(seen.start, 3), "end": round(seen.end, 3)}
                    row["windows"].append({**times, **most_likely(mean, classes, top)})
                report({"event": "window", "done": len(row["windows"]), "windows": len(windows)})
        except VideoError as error:
            row["error"] = error.reason
            report(notice(str(error)))
    return told


def _means(model: OpenedModel, part: Sequence[Seen]) -> Iterator[tuple[Window, Tensor]]:
    """Each window with its probabilities (classes,), the mean over its views."""
    views = torch.stack([clip for _, clip in part])  # (W, V, 3, T, H, W)
    found = model.probabilities(views.flatten(0, 1)).unflatten(0, (len(part), -1))  # (W, V, classes)
    return zip((window for window, _ in part), found.mean(dim=1), strict=True)


def windows_of(sample: Sample, views: EvalViews, *, window: float | None, step: float | None) -> list[Window]:
    """Windows from the start of a video on; the last one ends with it, so that nothing is left out.

    A window in which no frame is shown is left out.

    Raises:
        VideoError: it cannot be read, or has no times.
    """
    times = frame_times(sample.video)
    fps = probe(sample.video).fps or 1.0
    first, length = segment(sample)
    begin, end = float(times[first]), float(times[first + length - 1] + 1 / fps)
    window = views.frames * views.stride / fps if window is None else window
    step = step or window
    count = max(int((end - begin - window) / step + TOLERANCE), 0) + 1  # that end within the video
    starts = [begin + place * step for place in range(count)]
    if starts[-1] + window < end - TOLERANCE:
        starts.append(max(end - window, begin))
    found = []
    for start in starts:
        inside, after = frame_range(times, start, start + window)
        inside, after = max(inside, first), min(after, first + length)
        if inside < after:
            until = min(start + window, end)
            found.append(Window(start=start, end=until, first=inside, length=after - inside))
    return found


def window_clips(path: Video, windows: Sequence[Window], views: EvalViews) -> Iterator[Tensor]:
    """The views (V, 3, T, H, W) uint8 of each window in turn.

    Raises:
        VideoError: when it comes to a frame that cannot be decoded.
    """
    needed = [window.first + views.windows(window.length) for window in windows]  # (clips, T) each
    lowest = np.minimum.accumulate([ids.min() for ids in needed][::-1])[::-1]  # of a window and all after it
    wanted = np.unique(np.stack(needed))
    frames = zip(wanted.tolist(), frames_in_order(path, wanted), strict=True)
    held: dict[int, Tensor] = {}  # (3, 1, H', W') by number
    for ids, oldest in zip(needed, lowest, strict=True):
        held = {number: frame for number, frame in held.items() if number >= oldest}
        while ids.max() not in held:
            number, frame = next(frames)
            held[number] = views.resized(frame[None])
        numbers, places = np.unique(ids, return_inverse=True)
        video = torch.cat([held[number] for number in numbers.tolist()], dim=1)  # (3, F, H', W')
        yield torch.stack(views.cut(video, places))


def _batches(seen: Iterator[Seen], size: int) -> Iterator[list[Seen]]:
    """`size` windows at a time; those before a frame that cannot be decoded come before its error."""
    held: list[Seen] = []
    problem: VideoError | None = None
    try:
        for one in seen:
            held.append(one)
            if len(held) == size:
                yield held
                held = []
    except VideoError as error:
        problem = error
    if held:
        yield held
    if problem is not None:
        raise problem
