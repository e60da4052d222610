"""Frame tables, csv: a row for each frame and a column of 0 and 1 for each class; one file for each video.

DeepEthogram writes `VIDEO_labels.csv` with a column without a name, `background` and the classes; -1 is a
frame that no one has labeled. SimBA's tables have hundreds of columns of poses and features before the
classes, and a column `Probability_CLASS` next to each class that a model found.

F frames, C classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from everest.annotations.bout import BACKGROUND, Bout, Origin
from everest.annotations.lines import separator_of
from everest.annotations.matching import VideoNames
from everest.annotations.times import VideoTimes
from everest.errors import DataError, first_names

LABELS: Final = "_labels"  # DeepEthogram's ending of labels, and of predictions
PREDICTIONS: Final = "_predictions"
NUMBERS: Final = ("", "frame", "frames")  # names of the column of the frame numbers
PROBABILITY: Final = "Probability_"
COUNTS: Final = "Low_prob_detections"  # features of SimBA that may be 0 or 1 in all frames
POSE: Final = ("_x", "_y", "_p")
VALUES: Final = frozenset({"0", "1", "0.0", "1.0", "-1", "-1.0"})
MOST_DIFFERENT: Final = 0.01  # our choice: the share of frames by which table and video may differ in length


def is_header(fields: Sequence[str]) -> bool:
    """Whether a line names the columns of a frame table: the first, the number of the frame, has no name."""
    is_simba = {suffix for name in fields for suffix in POSE if name.lower().endswith(suffix)} == set(POSE)
    return fields[:1] in ([""], ["frame"]) and len(fields) > 1 and (BACKGROUND in fields or is_simba)


def read_frame_table(path: Path, fps: float | None, videos: VideoNames) -> list[Bout]:
    """Read the runs of ones of each class, timed by the frame rate, or else by the frames of the video.

    Raises:
        DataError: neither is known, or the video has another number of frames.
    """
    names, is_scored, values = _columns(path)  # (F, C)
    stem = path.stem
    origin: Origin = "automated" if stem.endswith(PREDICTIONS) or is_scored else "manual"
    video = stem.removesuffix(LABELS).removesuffix(PREDICTIONS)
    frames = len(values)
    times = None if fps is None else VideoTimes.at_rate(fps, frames)
    if times is None:
        times = videos.times(video)
        if times is None:
            raise DataError(
                f"{path}: its rows are frames, and their times are not known; set --fps, or name the folder "
                f"of the video {video} (--videos)"
            )
        if abs(times.frames - frames) > max(2, MOST_DIFFERENT * frames):
            raise DataError(
                f"{path}: has {frames} frames, and the video {times.frames}; is it of another video?"
            )
    bouts = []
    for name, column in zip(names, values.T, strict=True):
        changes = np.diff(np.concatenate([[0], column, [0]]))
        for first, after in zip(np.flatnonzero(changes == 1), np.flatnonzero(changes == -1), strict=True):
            # Programs count a few frames more or fewer at the end than the decoder.
            start, end = (float(times.borders[min(place, times.frames)]) for place in (first, after))
            if start < end:
                bouts.append(Bout(video=video, start=start, end=end, label=name, origin=origin))
    return bouts


def _columns(path: Path) -> tuple[list[str], bool, np.ndarray]:
    """The names of the classes, whether a model found them, and whether each frame has each: (F, C) int8.

    The classes are the last columns of 0 and 1. The file is read twice, because it may have 500 columns.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = separator_of(file.readline(), is_header)
        file.seek(0)
        rows = csv.reader(file, delimiter=separator)
        header = next(rows, [])
        scored = [name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY)]
        skipped = {place for place, name in enumerate(header) if name.startswith((PROBABILITY, COUNTS))}
        places = {place for place, name in enumerate(header) if name not in NUMBERS} - skipped
        for row in filter(None, rows):
            if len(row) < len(header):
                raise ValueError(f"line {rows.line_num} has {len(row)} fields, and the header {len(header)}")
            places = {place for place in places if row[place] in VALUES}
    end = len(header)
    while end - 1 in places | skipped:
        end -= 1
    chosen = sorted(
        place
        for place in places
        if header[place] != BACKGROUND and (header[place] in scored if scored else place >= end)
    )
    if not chosen and header[-1:] != [BACKGROUND]:
        raise ValueError(f"no column of 0 and 1 at its end (columns: {first_names(header)})")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator)
        next(rows)
        values = [[float(row[place]) == 1 for place in chosen] for row in filter(None, rows)]
    if not values:
        raise ValueError("it has no row of a frame")
    table = np.array(values, np.int8).reshape(len(values), len(chosen))
    return [header[place] for place in chosen], bool(scored), table


def frame_table_text(bouts: Mapping[str, Sequence[Bout]], times: Mapping[str, VideoTimes]) -> str:
    """DeepEthogram's labels of one video. A point event lasts one frame."""
    ((video, of_video),) = bouts.items()
    labels = sorted({bout.label for bout in of_video} - {BACKGROUND})
    values = np.zeros((times[video].frames, len(labels)), np.int8)  # (F, C)
    for bout in of_video:
        if bout.label != BACKGROUND:
            first, after = times[video].span(bout)
            values[first:after, labels.index(bout.label)] = 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", BACKGROUND, *labels])
    for number, row in enumerate(values.tolist()):
        writer.writerow([number, int(not any(row)), *row])
    return text.getvalue()
