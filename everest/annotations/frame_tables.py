"""Frame tables, csv: a row for each frame and a column of 0 and 1 for each class; one file for each video.

DeepEthogram writes `VIDEO_labels.csv` with a column without a name, `background` and the classes. No one has
labeled a frame whose row is missing, or has -1, nan or an empty cell. SimBA's tables have hundreds of columns
of poses and features before the classes, and a column `Probability_CLASS` next to each class that a model
found.

F frames, C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.annotations.bout import BACKGROUND, UNSCORED, Bout, Origin
from everest.annotations.lines import in_line, separator_of
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.errors import DataError, first_names

LABELS: Final = "_labels"  # DeepEthogram's ending of labels, and of predictions
PREDICTIONS: Final = "_predictions"
NUMBERS: Final = ("", "frame", "frames")  # names of the column of the frame numbers
PROBABILITY: Final = "Probability_"
COUNTS: Final = "Low_prob_detections"  # features of SimBA that may be 0 or 1 in all frames
POSE: Final = ("_x", "_y", "_p")
NO_LABEL: Final = -1
OTHER: Final = -2  # a number of a feature
CODES: Final = {"0": 0, "0.0": 0, "1": 1, "1.0": 1} | dict.fromkeys(
    ("-1", "-1.0", "", "nan", "NaN", "NA"), NO_LABEL
)
MOST_FRAMES: Final = 20_000_000  # our choice: 9 days at 25 frames a second; a table of them fits in memory
END_FRAMES: Final = 2  # programs count a few frames more or fewer at the end than the decoder
MOST_DIFFERENT: Final = 0.01  # our choice: the share of frames by which table and video may differ in length


def has_columns(fields: Sequence[str]) -> bool:
    """Whether a line names the columns of a frame table: the first, the number of the frame, has no name."""
    is_simba = {suffix for name in fields for suffix in POSE if name.lower().endswith(suffix)} == set(POSE)
    is_unnamed = fields[:1] == [""] and (BACKGROUND in fields or is_simba)
    return len(fields) > 1 and (is_unnamed or fields[0] == "frame")


def read(path: Path, fps: float | None, videos: VideoFinder) -> list[Bout]:
    """Read the runs of ones of each class, and the runs of frames that no one has labeled.

    Frames are timed by the frame rate, or else by the frames of the video.
    """
    names, is_predicted, values = _columns(path)  # (F, C)
    stem = path.stem
    origin: Origin = "automated" if stem.endswith(PREDICTIONS) or is_predicted else "manual"
    video = stem.removesuffix(LABELS).removesuffix(PREDICTIONS)
    frames = len(values)
    video_times = videos.times(video)
    times = video_times if fps is None else VideoTimes.at_rate(fps, frames)
    if times is None:
        raise DataError(
            f"{path}: its rows are frames, and their times are not known; set --fps, or name the folder "
            f"of the video {video} (--videos)"
        )
    if abs(times.frames - frames) > max(END_FRAMES, MOST_DIFFERENT * frames):
        fix = " If its last frames are not labeled, set --fps" if frames < times.frames else ""
        raise DataError(
            f"{path}: has {frames} frames, and the video {times.frames}; is it of another video?{fix}"
        )
    spans: list[tuple[str, float, float]] = []
    for name, column in zip(names, values.T, strict=True):
        changes = np.flatnonzero(np.diff(column, prepend=0, append=0))  # starts and ends of runs in turn
        borders = times.borders[np.minimum(changes, times.frames)].tolist()
        spans += zip(repeat(name), borders[::2], borders[1::2], strict=False)
    last = float(times.borders[min(frames, times.frames)])
    if video_times is not None and (video_times.seconds - last) * video_times.fps > END_FRAMES + 0.5:
        spans.append((UNSCORED, last, video_times.seconds))
    return [
        Bout(video=video, start=start, end=end, label=name, origin=origin)
        for name, start, end in spans
        if start < end
    ]


def _columns(path: Path) -> tuple[list[str], bool, NDArray[np.int8]]:
    """The names of the classes, whether a model found them, and whether each frame has each: (F, C).

    The classes are the last columns of 0 and 1; `unscored` follows them.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = separator_of(file.readline(), has_columns)
        file.seek(0)
        table = csv.reader(file, delimiter=separator)
        header = next(table, [])
        rows, numbers = [], []
        for row in filter(None, table):
            with in_line(table.line_num, row, header):
                rows.append(np.array([CODES.get(cell, OTHER) for cell in row[: len(header)]], np.int8))
                numbers.append(row[0])
    if not rows:
        raise ValueError("it has no row of a frame")
    codes = np.stack(rows)  # (rows, columns)
    predicted = {name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY)}
    is_other = (codes == OTHER).any(axis=0) | [name in NUMBERS for name in header]
    is_skipped = np.array([name.startswith((PROBABILITY, COUNTS)) for name in header])
    first = np.flatnonzero(is_other & ~is_skipped).max(initial=-1) + 1
    places = np.flatnonzero(~is_other & ~is_skipped).tolist()
    background = [place for place in places if header[place] == BACKGROUND]
    classes = [place for place in places if header[place] != BACKGROUND]
    chosen = [place for place in classes if (header[place] in predicted if predicted else place >= first)]
    if not chosen and header[-1] != BACKGROUND:
        raise ValueError(f"no column of 0 and 1 at its end (columns: {first_names(header)})")
    frames = _frames_of(numbers) if header[0] in NUMBERS else np.arange(len(numbers))
    is_labeled = (codes[:, chosen + background] != NO_LABEL).all(axis=1)
    values = np.zeros((frames[-1] + 1, len(chosen) + 1), np.int8)
    values[:, -1] = 1  # no row
    values[frames[is_labeled], -1] = 0
    values[frames[is_labeled], :-1] = codes[is_labeled][:, chosen]
    return [*(header[place] for place in chosen), UNSCORED], bool(predicted), values


def _frames_of(numbers: Sequence[str]) -> NDArray[np.int64]:
    """The frame of each row, from 0, by its number in the table; by its place if the numbers do not rise."""
    places = np.arange(len(numbers))
    try:
        frames = np.array(numbers, np.float64)
    except ValueError:
        return places
    frames -= frames[0] == 1  # numbers from 1 on
    is_rising = (np.diff(frames) >= 1).all() and (frames == frames.round()).all()
    return frames.astype(np.int64) if is_rising and 0 <= frames[0] <= frames[-1] < MOST_FRAMES else places
