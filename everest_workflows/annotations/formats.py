"""Annotation files: recognize their kind, read and write them.

A file names videos as its program wrote them; annotations.matching finds the user's videos by these names.
This module reads and writes plain tables of bouts (csv, tsv) itself: `video,start,end,label`,
optionally `origin,subject,observer`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from everest.errors import DataError, join_first, shorten
from everest.system.files import write_text
from everest.system.text import read_json
from everest.system.types import Span
from everest.video.folders import as_data_error, refuse_video
from everest.video.frame_borders import VideoTimes
from everest_workflows.annotations import boris, boris_table, elan, frame_tables, label_studio, subtitles
from everest_workflows.annotations.bout import (
    CHECKED,
    ORIGINS,
    TO_CHECK,
    Bout,
    Bouts,
    group_by_video,
    unscored_bouts,
)
from everest_workflows.annotations.matching import VideoFinder, stem
from everest_workflows.annotations.records import (
    NO_EVENT,
    READING_ERRORS,
    SEPARATORS,
    IsHeader,
    LeftOut,
    Unread,
    error_reason,
    left_out_text,
    line_errors,
    read_number,
    read_table,
    split_cells,
)

TABLE_COLUMNS: Final = ("video", "start", "end", "label")  # columns of a table of bouts
SYNONYMS: Final[Mapping[str, set[str]]] = {  # other names of columns
    "video": {"recording", "file", "filename", "video_name"},
    "start": {"onset", "start_time", "begin"},
    "end": {"stop", "offset", "end_time"},
    "label": {"behavior", "behaviour", "class", "action"},
    "subject": {"animal", "mouse", "rat", "animal_id", "mouse_id", "subject_id"},
    "observer": {"rater", "coder", "annotator"},
}
BINARY_STARTS: Final = {  # first bytes of files that are not text
    b"PK": "it is a spreadsheet or an archive; export it as csv or tsv, or unpack it",
    b"\xd0\xcf": "it is a spreadsheet; export it as csv or tsv",
    b"\x1f\x8b": "it is compressed; unpack it first",
}
LINES_SEARCHED: Final = 100  # lines to search for the header; BORIS 7 begins with lines about the observation

Read = Callable[[Path, "float | None", VideoFinder, LeftOut], Iterable[Bout]]
Write = Callable[[Bouts, Mapping[str, VideoTimes], Sequence[str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a kind of file is recognized, read and written."""

    read: Read
    write: Write | None = None  # takes bouts and times by video, and all classes; None: not writable
    ending: str = ""  # recognizes the kind; files in a folder also get it
    keys: Sequence[set[str]] = ()  # recognize JSON that has all keys of a set (in a list, its first item)
    is_header: IsHeader | None = None  # recognizes the header of a table
    is_of_one_video: bool = False


def name_columns(header: Sequence[str]) -> list[str]:
    """The names of columns as everest calls them; of two synonyms, neither is renamed."""
    names = [cell.strip().lower() for cell in header]
    for name, synonyms in SYNONYMS.items():
        found = [index for index, column in enumerate(names) if column in synonyms]
        if name not in names and len(found) == 1:
            names[found[0]] = name
    return names


def is_header(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of a table of bouts."""
    return set(name_columns(cells)).issuperset(TABLE_COLUMNS)


def _read_table(path: Path, fps: float | None, videos: VideoFinder, left_out: LeftOut) -> Iterator[Bout]:
    """Read a bout from each row with a label."""
    _, header, rows = read_table(path, is_header)
    names = name_columns(header)
    for line_number, cells in rows:
        with line_errors(line_number, cells, names):
            row = dict(zip(names, map(str.strip, cells), strict=False))
        observer, media = row.get("observer", ""), [row["video"]] if row["video"] else []
        with left_out.reading(f"line {line_number}", media, observer) as record:
            record.subject = row.get("subject", "")
            if not row["label"]:
                left_out["row without a label"] += 1
                continue
            if not media:
                raise ValueError("it names no video")
            origin = row.get("origin") or "manual"
            if origin not in ORIGINS:
                raise ValueError(f"the origin is '{origin}' and not one of {', '.join(ORIGINS)}")
            start, end = read_number(row["start"]), read_number(row["end"])
            person: Any = {"origin": origin, "subject": record.subject, "observer": observer}
            yield Bout(video=row["video"], start=start, end=end, label=row["label"], **person)


def _write_table(bouts: Bouts, times: Mapping[str, VideoTimes], classes: Sequence[str]) -> str:
    """A comma-separated table; times are the shortest decimals that are read back as the same numbers."""
    all_bouts = [bout for video_bouts in bouts.values() for bout in video_bouts]
    columns = [*TABLE_COLUMNS, "origin"]
    columns += [name for name in ("subject", "observer") if any(getattr(bout, name) for bout in all_bouts)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([getattr(bout, name) for name in columns] for bout in all_bouts)])
    return text.getvalue()


FORMATS: Final[dict[str, Format]] = {
    "csv": Format(read=_read_table, write=_write_table, is_header=is_header),
    "boris": Format(
        read=boris.read, write=boris.write, ending=".boris", keys=[{"observations", "behaviors_conf"}]
    ),
    "boris-table": Format(read=boris_table.read, is_header=boris_table.is_header),
    "elan": Format(read=elan.read, write=elan.write, ending=".eaf", is_of_one_video=True),
    "label-studio": Format(
        read=label_studio.read, keys=[{"annotations"}, {"predictions"}, {"video"}, {"data"}]
    ),
    "activitynet": Format(read=label_studio.read_activitynet, keys=[{"database"}, {"results"}]),
    "frames": Format(read=frame_tables.read, is_header=frame_tables.is_header),
    "vtt": Format(read=subtitles.read, write=subtitles.write_vtt, ending=".vtt", is_of_one_video=True),
    "srt": Format(read=subtitles.read, write=subtitles.write_srt, ending=".srt", is_of_one_video=True),
}


def read_annotations(
    path: Path,
    *,
    fps: float | None = None,
    videos: VideoFinder | None = None,
    keep_windows: bool = False,
    left_out: LeftOut | None = None,
    is_chosen: Callable[[Unread], bool] = lambda record: True,
) -> list[Bout]:
    """Read the bouts of an annotation file.

    Args:
        fps: frames per second of files that count frames; None: the rate stated in the file, or the video's.
        videos: the user's videos, for files that name several media, or leave out the times of frames or the
            lengths of videos.
        keep_windows: return the windows of `everest budget --draw` as bouts, labeled `checked` or `to check`.
            Otherwise, the time outside checked windows is unscored.
        left_out: receives the number of records that are not read, by reason.
        is_chosen: whether a record that cannot be read is of a chosen observer and subject.
    Raises:
        DataError: a chosen record of one of `videos` (without `videos`, of any video) cannot be read (the
            message names it), or no record has a bout.
    """
    videos, file_left_out = videos or VideoFinder(), LeftOut()
    with as_data_error(path):
        refuse_video(path, expected="a file of annotations")
        format_name = "annotations"
        try:
            format_name = recognize_format(path)
            bouts = list(FORMATS[format_name].read(path, fps, videos, file_left_out))
            for bout in bouts:  # values in JSON may have any type
                if not all(isinstance(text, str) and text.strip() for text in (bout.video, bout.label)):
                    raise ValueError(f"'{bout.label}' of the video '{bout.video}': both must be named")
            bouts = [replace(bout, label=bout.label.strip()) for bout in bouts]
            for record in file_left_out.unread:
                is_of_user = not (videos.videos and record.videos) or any(map(videos.find, record.videos))
                if is_of_user and is_chosen(record):
                    raise ValueError(record.reason)
                file_left_out[f"not needed, and cannot be read: {record.reason}"] += 1
        except (*READING_ERRORS, csv.Error) as error:
            reason = shorten(error_reason(error), most=300)
            raise DataError(f"{path}: cannot be read as {format_name}: {reason}") from error
    if not (bouts or file_left_out.unread) and file_left_out.keys() - {NO_EVENT}:
        fix = "; give the videos of another player only" if boris.OUTSIDE in file_left_out else ""
        raise DataError(f"{path}: has no bout that is read, only {left_out_text(file_left_out)}{fix}")
    if left_out is not None:
        left_out.update(file_left_out)
        left_out.unread += file_left_out.unread
    if keep_windows:
        return bouts
    kept = [bout for bout in bouts if bout.label not in (CHECKED, TO_CHECK)]
    checked: dict[tuple[str, str], list[Span]] = {}  # spans of the checked windows by video and observer
    for window in (bout for bout in bouts if bout.label in (CHECKED, TO_CHECK)):
        spans = checked.setdefault((window.video, window.observer), [])
        spans += [(window.start, window.end)] if window.label == CHECKED else []
    for (video, observer), spans in checked.items():
        kept += unscored_bouts(video, spans, observer=observer)
    return kept


def recognize_format(path: Path) -> str:
    """The kind of a file, by its ending, the keys of its JSON or the names of its columns."""
    for name, file_format in FORMATS.items():
        if path.suffix and path.suffix.lower() == file_format.ending:
            return name
    with path.open("rb") as file:
        if (problem := BINARY_STARTS.get(file.read(2))) is not None:
            raise ValueError(problem)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(islice(file, LINES_SEARCHED))
    needs = f"a csv table needs the columns {','.join(TABLE_COLUMNS)}"
    if "".join(lines[:1]).lstrip().startswith(("{", "[")):
        document = read_json(path, nan=True)
        first = document[0] if isinstance(document, list) and document else document
        for name, file_format in FORMATS.items():
            if isinstance(first, dict) and any(first.keys() >= keys for keys in file_format.keys):
                return name
        values = first.values() if isinstance(first, dict) else ()
        if any(isinstance(value, dict) and "annotations" in value for value in values):
            return "activitynet"  # without the key `database`
        keys = shorten(join_first(list(map(str, first)))) if isinstance(first, dict) else ""
        needs += f"; this is JSON with {keys or 'no keys'}"
    elif headers := [split_cells(lines[0], separator) for separator in SEPARATORS] if lines else []:
        header = max(headers, key=len)
        missing = [name for name in TABLE_COLUMNS if name not in name_columns(header)]
        names = [cell.strip().lower() for cell in header]
        needs += f"; its header lacks {', '.join(missing)} (it has {shorten(join_first(names, 10))})"
        if "youtube_id" in names:
            needs = "for a list of Kinetics, use `everest prepare index`"
    for cells in (split_cells(line, separator) for line in lines for separator in SEPARATORS):
        for name, file_format in FORMATS.items():
            if file_format.is_header and file_format.is_header(cells):
                return name
    raise DataError(f"{path}: not annotations of a known kind ({', '.join(FORMATS)}); {needs}")


def plan_files(path: Path, videos: Iterable[str], format_name: str) -> dict[Path, list[str]]:
    """The files that `write_annotations` writes, each with its videos."""
    names = list(videos)
    file_format = FORMATS[format_name]
    if not names:
        raise DataError(f"{path}: there is no bout and no video to write")
    if not file_format.is_of_one_video or len(names) == 1:
        return {path: names}
    files: dict[Path, list[str]] = {}
    for name in names:
        file = path / f"{stem(name)}{file_format.ending}"
        if file in files:
            raise DataError(f"{name} and {files[file][0]}: their files would have the same name, {file.name}")
        files[file] = [name]
    return files


def write_annotations(
    path: Path,
    bouts: Iterable[Bout],
    format_name: str,
    *,
    times: Mapping[str, VideoTimes] | None = None,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Write bouts, each file atomically.

    Args:
        path: a file, or a folder for several videos if a file of this kind has only one.
        format_name: csv, boris, elan, srt or vtt.
        times: frame times by name of the video; these videos are written even without bouts.
        classes: the classes to list even without bouts, in kinds of files that name classes.
    Returns:
        The paths of the files.
    """
    times = times or {}
    write = FORMATS[format_name].write
    assert write is not None, format_name
    grouped = {video: list[Bout]() for video in times} | group_by_video(bouts)
    for bout in (bout for video_bouts in grouped.values() for bout in video_bouts):
        if not bout.label.strip() or not (bout.label + bout.subject).isprintable():
            text = f"the label or subject '{shorten(bout.label)}'"
            raise DataError(f"{shorten(bout.video)}: {text} is no line of text")
    files = plan_files(path, grouped, format_name)
    texts = [write({name: grouped[name] for name in names}, times, classes) for names in files.values()]
    for file, text in zip(files, texts, strict=True):  # no file is written if a label is refused
        write_text(file, text)
    return list(files)
