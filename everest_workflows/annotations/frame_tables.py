"""Frame tables (csv): a row for each frame and a column of 0 and 1 for each class; one file per video.

DeepEthogram writes `VIDEO_labels.csv` with a column without a name, `background` and the classes. No one has
labeled a frame whose row is missing, or has -1, nan or an empty cell. SimBA's tables have hundreds of columns
of poses and features before the classes, and a column `Probability_CLASS` next to each class that a model
found. Features may also be 0 or 1: `project_config.ini` in a folder above names the classes, otherwise the
classes are the last columns of 0 and 1 that are not features of SimBA.

Source: simba/roi_tools/ROI_feature_analyzer.py and the settings of a project of SimBA.

F frames, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everest.errors import join_first, shorten
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations.bout import BACKGROUND, UNSCORED, Bout, Origin
from everest_workflows.annotations.matching import VideoFinder
from everest_workflows.annotations.records import LeftOut, line_errors, read_table

LABELS_SUFFIX: Final = "_labels"  # DeepEthogram's endings of file names: for labels, for predictions
PREDICTIONS_SUFFIX: Final = "_predictions"
FRAME_COLUMNS: Final = ("", "frame", "frames")  # names of the column of the frame numbers
PROBABILITY: Final = "Probability_"
POSE_ENDS: Final = ("_x", "_y", "_p")
COUNTS_PREFIX: Final = "low_prob_detections"  # features of SimBA that may be 0 or 1 in all frames
# Features of 0 and 1 about drawn regions: `Cage Animal_1 Nose in zone`, `Cage_Animal_1_facing`.
# R writes a point for a blank.
REGION_FEATURE: Final = re.compile(r"((^|[\s_.-])in[\s_.-]?zone|[\s_.-]facing)([\s_.-]|$)", re.IGNORECASE)
DISTANCE_FEATURE: Final = re.compile(r"[\s_.-](distance|cumulative)([\s_.-]|$)", re.IGNORECASE)
CONFIG: Final = "project_config.ini"  # SimBA's file, three folders above its tables
CONFIG_SECTION: Final = "SML settings"
CLASS_KEY: Final = "target_name_"
UNSCORED_CODE: Final = -1
OTHER_CODE: Final = -2  # code of any other cell, such as a feature
UNSCORED_CELLS: Final = ("-1", "-1.0", "", "nan", "NaN", "NA")
CELL_CODES: Final = {"0": 0, "0.0": 0, "1": 1, "1.0": 1} | dict.fromkeys(UNSCORED_CELLS, UNSCORED_CODE)
MAX_FRAMES: Final = 20_000_000  # heuristic: 9 days at 25 frames a second; such a table fits in memory
END_FRAMES: Final = 2  # frames by which programs and the decoder differ at the end
MAX_DIFFERENT: Final = 0.01  # heuristic: the fraction of frames by which table and video may differ in length


def is_header(cells: Sequence[str]) -> bool:
    """Whether a line is the header of a frame table: its first column, the frame number, may have no name."""
    is_unnamed = cells[:1] == [""] and (BACKGROUND in cells or _is_simba(cells))
    return len(cells) > 1 and (is_unnamed or cells[0] == "frame")


def _is_simba(header: Sequence[str]) -> bool:
    """Whether the header has columns of poses, as tables of SimBA do."""
    return all(any(name.lower().endswith(suffix) for name in header) for suffix in POSE_ENDS)


def read(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read each run of ones of a class, and each run of unlabeled frames, as a bout.

    Frames get their times from the frame rate `fps`, or, without it, from the video.
    """
    video = path.stem.removesuffix(LABELS_SUFFIX).removesuffix(PREDICTIONS_SUFFIX)
    with left_out.reading("", [video]):
        yield from _read_bouts(path, video, fps, videos, left_out)


def _read_bouts(
    path: Path, video: str, fps: float | None, videos: VideoFinder, left_out: LeftOut
) -> Iterator[Bout]:
    columns_left_out = LeftOut()
    flags_by_class, is_predicted = _read_table(path, columns_left_out)
    num_frames = len(flags_by_class[UNSCORED])
    video_times = videos.times(video)
    times = video_times if fps is None else VideoTimes.from_rate(fps, num_frames)
    if times is None:
        raise ValueError(
            f"its rows are frames, and their times are not known; set --fps, or name the folder "
            f"of the video {video} (--videos)"
        )
    if abs(times.num_frames - num_frames) > max(END_FRAMES, MAX_DIFFERENT * num_frames):
        fix = " If its last frames are not labeled, set --fps" if num_frames < times.num_frames else ""
        raise ValueError(
            f"has {num_frames} frames, and the video {times.num_frames}; is it of another video?{fix}"
        )
    spans: list[tuple[str, float, float]] = []
    for label, flags in flags_by_class.items():
        changes = np.flatnonzero(np.diff(flags, prepend=False, append=False))  # starts and ends, alternating
        borders = times.borders[np.minimum(changes, times.num_frames)].tolist()
        spans += [(label, *span) for span in zip(borders[::2], borders[1::2], strict=True)]
    last = float(times.borders[min(num_frames, times.num_frames)])
    if video_times is not None and (video_times.seconds - last) * video_times.fps > END_FRAMES + 0.5:
        spans.append((UNSCORED, last, video_times.seconds))  # frames that the table lacks
    origin: Origin = "automated" if is_predicted or path.stem.endswith(PREDICTIONS_SUFFIX) else "manual"
    for label, start, end in spans:
        if start < end:
            yield Bout(video=video, start=start, end=end, label=label, origin=origin)
    if spans:  # a video without a bout has also been read
        left_out.update(columns_left_out)


def _read_table(path: Path, left_out: LeftOut) -> tuple[dict[str, NDArray[np.bool_]], bool]:
    """Read the flags (F,) of each class and of `unscored`, and whether a model predicted the classes.

    The flags of `unscored` are last. Columns of equal names are merged.
    """
    _, header, rows = read_table(path, is_header)
    row_codes: list[NDArray[np.int8]] = []  # each (columns,)
    first_cells: list[str] = []
    for line_number, cells in rows:
        with line_errors(line_number, cells, header):
            codes_of_cells = [CELL_CODES.get(cell.strip(), OTHER_CODE) for cell in cells[: len(header)]]
            row_codes.append(np.array(codes_of_cells, np.int8))
            first_cells.append(cells[0])
    if not row_codes:
        raise ValueError("it has no row of a frame")
    codes = np.stack(row_codes)
    columns = _find_class_columns(path, header, codes, left_out)
    frames = np.arange(len(codes))  # frame number of each row
    with suppress(ValueError):  # the first cells are the frame numbers if they are rising numbers
        counts = np.array(first_cells, np.float64)
        counts -= counts[0] == 1  # frame numbers may start at 1
        is_rising = (np.diff(counts) >= 1).all() and (counts == counts.round()).all()
        if is_rising and 0 <= counts[0] <= counts[-1] < MAX_FRAMES:
            frames = counts.astype(np.int64)
    values = np.full((frames[-1] + 1, len(columns)), UNSCORED_CODE, np.int8)  # (F, C), with background
    values[frames] = codes[:, columns]
    unscored = (values == UNSCORED_CODE).any(axis=1)
    flags_by_class: dict[str, NDArray[np.bool_]] = {}
    for column, flags in zip(columns, ((values == 1) & ~unscored[:, None]).T, strict=True):
        flags_by_class[header[column]] = flags_by_class.get(header[column], False) | flags
    flags_by_class.pop(BACKGROUND, None)
    flags_by_class[UNSCORED] = unscored | flags_by_class.pop(UNSCORED, False)
    return flags_by_class, any(name.startswith(PROBABILITY) for name in header)


def _find_class_columns(
    path: Path, header: Sequence[str], codes: NDArray[np.int8], left_out: LeftOut
) -> list[int]:
    """The columns of the `codes` (rows, columns) that are classes; ValueError if there are none."""
    column_ids = [column for column, name in enumerate(header) if name not in FRAME_COLUMNS]
    is_binary = (codes != OTHER_CODE).all(axis=0).tolist()
    is_simba = _is_simba(header)
    stated = {name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY)}
    configs = [folder / CONFIG for folder in path.absolute().parents[:4]] if is_simba and not stated else []
    if (config := next((file for file in configs if file.exists()), None)) is not None:
        parser = ConfigParser(interpolation=None)
        try:
            parser.read_string(config.read_text(encoding="utf-8-sig"))
            settings = parser.items(CONFIG_SECTION)
        except ConfigParserError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{config} cannot be read: {reason}") from error
        stated = {name.strip() for key, name in settings if key.startswith(CLASS_KEY) and name.strip()}
    others = [column for column in column_ids if not is_binary[column]]
    classes = [column for column in column_ids if is_binary[column]]
    if stated:
        classes = [column for column in classes if header[column] in stated]
    elif is_simba:
        is_feature = [  # whether each column is a feature, which may come last
            name.lower().startswith(COUNTS_PREFIX)
            or REGION_FEATURE.search(name) is not None
            or (DISTANCE_FEATURE.search(name) is not None and not binary)
            for name, binary in zip(header, is_binary, strict=True)
        ]
        ends = dropwhile(is_feature.__getitem__, reversed(column_ids))
        classes = list(takewhile(lambda column: is_binary[column] and not is_feature[column], ends))[::-1]
    elif others and BACKGROUND in header:  # DeepEthogram's columns are all classes
        names = join_first([header[column] for column in others])
        raise ValueError(f"columns with other values than 0, 1 and -1: {names}")
    if not any(header[column] != BACKGROUND for column in classes):
        place_text = f"for {join_first(sorted(stated))}" if stated else "at its end"
        raise ValueError(f"no column of 0 and 1 {place_text} (columns: {join_first(header)})")
    for name in sorted(stated - {header[column] for column in classes}):
        left_out[f"class without a column of 0 and 1 '{shorten(name)}'"] += 1
    for column in column_ids:
        name = header[column]
        is_expected = name.lower().endswith(POSE_ENDS) or name.lower().startswith(COUNTS_PREFIX)
        is_expected = is_expected or name.startswith(PROBABILITY) or name in stated
        if column in classes or is_expected or (is_simba and not is_binary[column]):
            continue  # SimBA's features are not records, unless they may be classes
        problem = "column that is no class" if is_binary[column] else "column of other values than 0 and 1"
        problem = "column of a region" if is_simba and REGION_FEATURE.search(name) else problem
        left_out[f"{problem} '{shorten(name)}'"] += 1
    return classes
