"""The kinds of annotation files: recognized, read and written.

A file names videos as its program wrote them; everest.annotations.matching finds the user's videos by them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final

from everest.annotations import bout_table, frame_tables
from everest.annotations.activitynet import activitynet_text, read_activitynet
from everest.annotations.boris import project_text, read_project
from everest.annotations.boris_tables import aggregated_text, events_text, is_header, read_table
from everest.annotations.bout import Bout, by_video
from everest.annotations.elan import elan_text, read_elan
from everest.annotations.kinds import KINDS, Kind, known_kind
from everest.annotations.label_studio import label_studio_text, read_label_studio
from everest.annotations.lines import SEPARATORS, fields_of
from everest.annotations.matching import VideoNames, stem
from everest.annotations.scored import outside_unscored
from everest.annotations.subtitles import bouts_srt_text, bouts_vtt_text, read_subtitles
from everest.annotations.times import VideoTimes
from everest.errors import DataError, first_names, shown
from everest.system.files import write_text
from everest.system.json_text import read_json
from everest.video.folders import as_data_error, refuse_video

NOT_UTF8: Final = "it is no text in UTF-8; save it in this encoding"
LINES_SEARCHED: Final = 100  # for the names of the columns; BORIS 7 begins with lines about the observation

Read = Callable[[Path, "float | None", VideoNames], list[Bout]]
Text = Callable[..., str]  # bouts and times by video and, where `names_classes`, the classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a kind of file is read and written."""

    read: Read
    text: Text
    ending: str  # of the file of a video, or of all videos
    structure: str = "a table, with equally many fields in each line"  # what a file is expected to hold
    is_of_one_video: bool = False
    needs_times: bool = False  # to be written
    names_classes: bool = False  # also those without bouts


FORMATS: Final[dict[Kind, Format]] = {
    "csv": Format(read=bout_table.read_bout_table, text=bout_table.bout_table_text, ending=".csv"),
    "boris": Format(
        read=read_project,
        text=project_text,
        ending=".boris",
        structure='a project of BORIS: "behaviors_conf", and "observations" with lists of "events"',
        names_classes=True,
    ),
    "boris-events": Format(read=read_table, text=events_text, ending=".tsv"),
    "boris-aggregated": Format(read=read_table, text=aggregated_text, ending=".tsv"),
    "elan": Format(
        read=read_elan,
        text=elan_text,
        ending=".eaf",
        structure="a document of ELAN, with a time in whole milliseconds for each slot",
        names_classes=True,
        is_of_one_video=True,
    ),
    "label-studio": Format(
        read=read_label_studio,
        text=label_studio_text,
        ending=".json",
        structure='a list of tasks with "data" and "annotations", whose "ranges" have "start" and "end"',
        needs_times=True,
    ),
    "activitynet": Format(
        read=read_activitynet,
        text=activitynet_text,
        ending=".json",
        structure='an object "database" of videos, or "results", with lists of "segment" and "label"',
        names_classes=True,
    ),
    "frames": Format(
        read=frame_tables.read_frame_table,
        text=frame_tables.frame_table_text,
        ending=f"{frame_tables.LABELS}.csv",
        names_classes=True,
        is_of_one_video=True,
        needs_times=True,
    ),
    "vtt": Format(read=read_subtitles, text=bouts_vtt_text, ending=".vtt", is_of_one_video=True),
    "srt": Format(read=read_subtitles, text=bouts_srt_text, ending=".srt", is_of_one_video=True),
}
BY_SUFFIX: Final[dict[str, Kind]] = {".boris": "boris", ".eaf": "elan", ".vtt": "vtt", ".srt": "srt"}


def read_annotations(
    path: Path,
    *,
    fps: float | None = None,
    kind: str | None = None,
    videos: VideoNames | None = None,
    keep_windows: bool = False,
) -> list[Bout]:
    """Read the bouts of an annotation file.

    Args:
        fps: frames per second of files that count frames; None: as the file states, or as the video has.
        kind: one of KINDS; None recognizes it.
        videos: the user's videos, for files that leave out the times of frames or the lengths of videos.
        keep_windows: return the windows of `everest budget --draw` as bouts, labeled `checked` or `to check`.
            Otherwise, the time outside checked windows is unscored.
    """
    with as_data_error(path):
        if path.exists() and not path.is_file():  # reading a named pipe would wait
            raise DataError(f"{path}: not a regular file")
        refuse_video(path, fix="name a file of annotations")
        found = recognize(path) if kind is None else known_kind(kind)
        try:
            bouts = FORMATS[found].read(path, fps, videos or VideoNames())
            for bout in bouts:  # JSON may hold anything
                if not all(isinstance(text, str) and text for text in (bout.video, bout.label)):
                    raise ValueError(f"'{bout.label}' of the video '{bout.video}': names are texts")
            return bouts if keep_windows else outside_unscored(bouts)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, csv.Error) as error:
            why = shown(_reason(error, found), most=300)
            raise DataError(f"{path}: cannot be read as {found}: {why}") from error


def _reason(error: Exception, kind: Kind) -> str:
    """Why a file cannot be read as a kind; another structure is named by what is expected."""
    match error:
        case UnicodeDecodeError():
            return NOT_UTF8
        case JSONDecodeError():
            return f"damaged JSON: {error}"
        case KeyError():
            return f"{error} is missing"
        case OverflowError():
            return "a number is too large for a time"
        case TypeError() | AttributeError() | IndexError():
            return f"its values are not structured as {FORMATS[kind].structure}"
    return str(error)


def recognize(path: Path) -> Kind:
    """The kind of a file, by its ending, the keys of its JSON or the names of its columns."""
    if path.suffix.lower() in BY_SUFFIX:
        return BY_SUFFIX[path.suffix.lower()]
    kind: Kind | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(islice(file, LINES_SEARCHED))
        if "".join(lines[:1]).lstrip()[:1] in ("{", "["):
            kind = _kind_of_json(_json_of(path))
        else:
            for line in lines:
                kind = kind or _kind_of_line(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {NOT_UTF8}") from error
    except csv.Error:
        kind = None
    if kind is None:
        raise DataError(
            f"{path}: no kind of annotations that everest reads ({', '.join(KINDS)}); name it by --kind"
        )
    return kind


def _json_of(path: Path) -> Any:
    """The value in a JSON file; DataError if it is damaged."""
    try:
        return read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: damaged JSON: {shown(error, most=200)}") from error


def _kind_of_json(document: Any) -> Kind | None:
    first = document[0] if isinstance(document, list) and document else document
    keys = set(first) if isinstance(first, dict) else set()
    if isinstance(document, dict) and {"observations", "behaviors_conf"} <= keys:
        return "boris"
    if isinstance(document, dict) and keys & {"database", "results"}:
        return "activitynet"
    return "label-studio" if keys & {"annotations", "predictions", "video", "data"} else None


def _kind_of_line(line: str) -> Kind | None:
    for separator in SEPARATORS:
        fields = fields_of(line, separator)
        table = is_header(fields)
        if table is not None:
            return known_kind(table)
        if bout_table.is_header(fields):
            return "csv"
        if frame_tables.is_header(fields):
            return "frames"
    return None


def files_of(path: Path, videos: Iterable[str], kind: Kind) -> dict[Path, list[str]]:
    """The files that `write_annotations` writes, each with its videos."""
    names, ending = list(videos), FORMATS[kind].ending
    if not names:
        raise DataError(f"{path}: there is no bout and no video to write")
    if not FORMATS[kind].is_of_one_video or len(names) == 1:
        return {path: names}
    files: dict[Path, list[str]] = {}
    for name in names:
        file = path / f"{stem(name)}{ending}"
        if file in files:
            raise DataError(f"{name} and {files[file][0]}: their files would have the same name, {file.name}")
        files[file] = [name]
    return files


def write_annotations(
    path: Path,
    bouts: Iterable[Bout],
    kind: Kind,
    *,
    times: Mapping[str, VideoTimes] | None = None,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Write bouts, each file atomically.

    Args:
        path: a file; a folder if a file of this kind is of one video, and there are several.
        times: of videos by the names that bouts have; its videos are written also if they have no bout.
        classes: that may have no bout, for kinds that name classes.
    Returns:
        The files.
    """
    known, form = times or {}, FORMATS[kind]
    grouped = {video: list[Bout]() for video in known} | by_video(bouts)
    for bout in (bout for each in grouped.values() for bout in each):
        if not bout.label.strip() or not (bout.label + bout.subject).isprintable():
            raise DataError(
                f"{shown(bout.video)}: the label or subject '{shown(bout.label)}' is no line of text"
            )
    missing = [video for video in grouped if video not in known]
    if form.needs_times and missing:
        raise DataError(
            f"{kind} counts frames, and the times of {first_names(missing)} are not known; set --fps, or "
            "name the folder of the videos (--videos)"
        )
    files = files_of(path, grouped, kind)
    named = (classes,) if form.names_classes else ()
    for file, names in files.items():
        write_text(file, form.text({name: grouped[name] for name in names}, known, *named))
    return list(files)
