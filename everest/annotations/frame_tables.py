"""Frame tables, csv: a row for each frame and a column of 0 and 1 for each class; one file for each video.

DeepEthogram writes `VIDEO_labels.csv` with a column without a name, `background` and the classes. No one has
labeled a frame whose row is missing, or has -1, nan or an empty cell. SimBA's tables have hundreds of columns
of poses and features before the classes, and a column `Probability_CLASS` next to each class that a model
found.

F frames, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.annotations.bout import BACKGROUND, UNSCORED, Bout, Origin
from everest.annotations.matching import VideoFinder, VideoTimes
from everest.annotations.records import LeftOut
from everest.annotations.tables import in_line, read_table
from everest.errors import DataError, first_names, shown

LABELS: Final = "_labels"  # DeepEthogram's ending of labels, and of predictions
PREDICTIONS: Final = "_predictions"
NUMBERS: Final = ("", "frame", "frames")  # names of the column of the frame numbers
PROBABILITY: Final = "Probability_"
COUNTS: Final = "Low_prob_detections"  # features of SimBA that may be 0 or 1 in all frames
POSE: Final = ("_x", "_y", "_p")
# Features of SimBA about drawn regions: `Cage Animal_1 Nose in zone`, `Cage_Animal_1_facing`.
REGION: Final = re.compile(r"[\s_](in[\s_]?zone|facing)(?![^\s_])", re.IGNORECASE)
NO_LABEL: Final = -1
OTHER: Final = -2  # a number of a feature
NO_LABELS: Final = ("-1", "-1.0", "", "nan", "NaN", "NA")
CODES: Final = {"0": 0, "0.0": 0, "1": 1, "1.0": 1} | dict.fromkeys(NO_LABELS, NO_LABEL)
MOST_FRAMES: Final = 20_000_000  # heuristic: 9 days at 25 frames a second; a table of them fits in memory
END_FRAMES: Final = 2  # programs count a few frames more or fewer at the end than the decoder
MOST_DIFFERENT: Final = 0.01  # heuristic: the share of frames by which table and video may differ in length


def has_columns(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of a frame table: the first, the number of the frame, has no name."""
    is_unnamed = cells[:1] == [""] and (BACKGROUND in cells or _is_simba(cells))
    return len(cells) > 1 and (is_unnamed or cells[0] == "frame")


def _is_simba(header: Sequence[str]) -> bool:
    """Whether there are columns of poses."""
    return {suffix for name in header for suffix in POSE if name.lower().endswith(suffix)} == set(POSE)


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read the runs of ones of each class, and the runs of frames that no one has labeled.

    Frames are timed by the frame rate, or else by the frames of the video.
    """
    flags_of, is_predicted = _read_table(path, left_out)
    frames = len(flags_of[UNSCORED])
    video = path.stem.removesuffix(LABELS).removesuffix(PREDICTIONS)
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
    for label, flags in flags_of.items():
        changes = np.flatnonzero(np.diff(flags, prepend=False, append=False))  # starts and ends in turn
        borders = times.borders[np.minimum(changes, times.frames)].tolist()
        spans += [(label, *span) for span in zip(borders[::2], borders[1::2], strict=True)]
    last = float(times.borders[min(frames, times.frames)])
    if video_times is not None and (video_times.seconds - last) * video_times.fps > END_FRAMES + 0.5:
        spans.append((UNSCORED, last, video_times.seconds))  # the frames of the video that the table lacks
    origin: Origin = "automated" if is_predicted or path.stem.endswith(PREDICTIONS) else "manual"
    for label, start, end in spans:
        if start < end:
            yield Bout(video=video, start=start, end=end, label=label, origin=origin)


def _read_table(path: Path, left_out: LeftOut) -> tuple[dict[str, NDArray[np.bool_]], bool]:
    """Whether each frame has each class, (F,), and last `unscored`; and whether a model found them.

    Columns of equal names are merged.
    """
    _, header, rows = read_table(path, has_columns)
    row_codes: list[NDArray[np.int8]] = []  # (columns,) each
    first_cells: list[str] = []
    for number, cells in rows:
        with in_line(number, cells, header):
            row_codes.append(np.array([CODES.get(cell, OTHER) for cell in cells[: len(header)]], np.int8))
            first_cells.append(cells[0])
    if not row_codes:
        raise ValueError("it has no row of a frame")
    codes = np.stack(row_codes)
    columns = _class_columns(header, codes, left_out)
    frames = _frame_numbers(first_cells)
    values = np.full((frames[-1] + 1, len(columns)), NO_LABEL, np.int8)  # (F, C), with the background
    values[frames] = codes[:, columns]
    unscored = (values == NO_LABEL).any(axis=1)
    flags_of: dict[str, NDArray[np.bool_]] = {}
    for column, flags in zip(columns, ((values == 1) & ~unscored[:, None]).T, strict=True):
        flags_of[header[column]] = flags_of.get(header[column], False) | flags
    flags_of.pop(BACKGROUND, None)
    flags_of[UNSCORED] = unscored | flags_of.pop(UNSCORED, False)
    return flags_of, any(name.startswith(PROBABILITY) for name in header)


def _class_columns(header: Sequence[str], codes: NDArray[np.int8], left_out: LeftOut) -> list[int]:
    """The columns of classes in codes (rows, columns): the last of 0 and 1, or those with a probability.

    Features of SimBA's regions, which may be appended before the classes, are none.
    """
    predicted = {name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY)}
    is_class = (codes != OTHER).all(axis=0) & [name not in NUMBERS for name in header]
    regions = [name for name in header if REGION.search(name)] if _is_simba(header) else []
    columns = [
        place
        for place, name in enumerate(header)
        if not name.startswith((PROBABILITY, COUNTS)) and name not in regions
    ]
    if predicted:
        classes = [place for place in columns if header[place] in predicted and is_class[place]]
    else:
        classes = list(takewhile(is_class.__getitem__, reversed(columns)))[::-1]
    for place in np.flatnonzero(is_class):
        name = header[place]
        if name in regions:
            left_out[f"column of a region '{shown(name)}'"] += 1
        elif place in columns and place not in classes and not name.lower().endswith((*POSE, BACKGROUND)):
            left_out[f"column of 0 and 1 before the classes '{shown(name)}'"] += 1
    if not classes:
        raise ValueError(f"no column of 0 and 1 at its end (columns: {first_names(header)})")
    return classes


def _frame_numbers(cells: Sequence[str]) -> NDArray[np.int64]:
    """The frame of each row by its first cell, or by its place if these numbers do not rise."""
    with suppress(ValueError):
        counts = np.array(cells, np.float64)
        counts -= counts[0] == 1  # numbers from 1 on
        is_rising = (np.diff(counts) >= 1).all() and (counts == counts.round()).all()
        if is_rising and 0 <= counts[0] <= counts[-1] < MOST_FRAMES:
            return counts.astype(np.int64)
    return np.arange(len(cells))
