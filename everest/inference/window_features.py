"""Features of windows that slide over long footage; a killed call resumes inside a video.

The windows are the same as of `everest predict --timeline`. Each is one row of a `RowStore`, in the order of
the videos and of time. A window with a damaged frame has no row.

V views, C channels, T frames, H W pixels, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.data.views import EvalViews
from everest.errors import RecipeError
from everest.inference.bouts import Window
from everest.inference.model import OpenedModel
from everest.inference.over_videos import Values
from everest.inference.predictions import damage_of, window_clips, windows_of
from everest.inference.row_store import RowStore, SampleEntry
from everest.lists.sample import Sample
from everest.system.events import Report, notice
from everest.system.files import atomic_file, write_text
from everest.video.reader import VideoError, probe, repairs

DAMAGED: Final = "a damaged window"
INDEX: Final = "features.json"  # of a folder with an array for each video

# A window with its views (V, C, T, H, W) uint8, or why the rest of a video is unreadable.
Item = tuple[Sample, tuple[Window, Tensor] | str]


def add_window_rows(
    store: RowStore,
    model: OpenedModel,
    samples: Sequence[Sample],
    row_of: Callable[[Values], dict[str, Tensor]],
    *,
    window: float,
    step: float,
    batch: int,
    report: Report,
) -> None:
    """Add the rows of the windows that a store does not have yet, with their `starts` and `ends` in seconds.

    Args:
        batch: windows in one forward pass, also of several videos.
    """
    items = window_items(
        samples, model.views, window=window, step=step, done=list(store.samples), report=report
    )
    while part := list(islice(items, batch)):
        clips = [result[1] for _, result in part if not isinstance(result, str)]
        rows: Iterator[dict[str, Tensor]] = iter(())
        if clips:
            values = model.encode(torch.stack(clips).flatten(0, 1))._asdict()
            by_window = {name: of.unflatten(0, (len(clips), -1)) for name, of in values.items()}  # (W, V, …)
            rows = (row_of({name: of[i] for name, of in by_window.items()}) for i in range(len(clips)))
        for sample, result in part:
            if isinstance(result, str):
                if result != DAMAGED:
                    report(notice(f"{sample.video_id}: {result}"))
                store.add(sample.video_id, result)
            else:
                times = {"starts": result[0].start, "ends": result[0].end}
                seconds = {name: torch.tensor(time, dtype=torch.float64) for name, time in times.items()}
                store.add(sample.video_id, {**next(rows), **seconds})


def window_items(
    samples: Sequence[Sample],
    views: EvalViews,
    *,
    window: float,
    step: float,
    done: Sequence[SampleEntry],
    report: Report,
) -> Iterator[Item]:
    """Yield the windows of each video in turn; of an unreadable or damaged one, the last item is the reason.

    A window with a damaged frame is DAMAGED.

    Args:
        done: the first items, which are skipped: the video of each, and the reason if it is one.
    """
    at = 0  # number of items passed
    passed: set[str] = set()  # videos
    for sample in samples:
        try:
            windows = windows_of(sample, views, window=window, step=step)
            for text in repairs(sample.video):
                report(notice(text))
            own = done[at : at + len(windows)]
            other = next((video for video, _ in own if video != sample.video_id), None)
            if other is not None:
                raise _changed(other if other in passed else sample.video_id)
            at += len(own)
            is_damaged = [reason is not None for _, reason in own]
            remaining = windows[len(own) :]
            clips = window_clips(sample.video, remaining, views) if remaining else iter(())
            for current, clip in zip(remaining, clips, strict=True):
                yield sample, DAMAGED if clip is None else (current, clip)
                is_damaged.append(clip is None)
                report({"event": "window", "done": len(is_damaged), "windows": len(windows)})
                at += 1
            problem = damage_of(sample, windows, compress(windows, is_damaged))
            if problem is not None:
                raise VideoError(sample.video, problem)
        except VideoError as error:
            if at >= len(done):
                yield sample, error.reason
            elif done[at][1] is None:  # it could be read before
                raise _changed(done[at][0] if done[at][0] in passed else sample.video_id) from error
            at += 1
        passed.add(sample.video_id)
    if at < len(done):
        raise _changed(done[at][0])


def _changed(video: str) -> RecipeError:
    return RecipeError(f"{video}: has changed since the interrupted call; start again with --overwrite")


def write_arrays(
    folder: Path,
    samples: Sequence[Sample],
    names: Sequence[str],
    arrays: dict[str, NDArray[Any]],
    *,
    header: dict[str, Any],
) -> None:
    """Write the features of each video as `STEM.npy`, float32 (windows, D), and last `features.json`.

    Args:
        names: the video of each row, in the order of the samples.
        arrays: `features` (rows, D), `starts` and `ends` (rows,) in seconds.
        header: the first keys of `features.json`; `videos` has the times of the windows of each array.
    """
    videos: dict[str, dict[str, Any]] = {}
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    (folder / INDEX).unlink(missing_ok=True)  # it must not be next to arrays of other videos
    for sample in samples:
        rows = rows_of.get(sample.video_id)
        if rows is None:
            continue
        part, stem = slice(rows[0], rows[-1] + 1), Path(sample.path).stem
        with atomic_file(folder / f"{stem}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, arrays["features"][part].astype(np.float32, copy=False), allow_pickle=False)
        videos[stem] = {
            "video": sample.video_id,
            "fps": probe(sample.video).fps,
            "frames": probe(sample.video).frames,
            **{name: [round(float(time), 3) for time in arrays[name][part]] for name in ("starts", "ends")},
        }
    write_text(folder / INDEX, json.dumps({**header, "videos": videos}, indent=1))
