"""A timeline next to the truth: the bouts of a person, found for each video, and the metrics of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from everest.annotations.bout import BACKGROUND, Bout, by_video
from everest.annotations.bout_table import read_window_length
from everest.annotations.formats import read_annotations, recognize
from everest.annotations.matching import VideoNames, match_videos
from everest.config.heads import Heads
from everest.errors import DataError, RecipeError, did_you_mean, first_names
from everest.inference.bouts import automated_bouts
from everest.lists.sample import Sample
from everest.metrics.timeline import TOLERANCE, VideoTimelines, timeline_metrics
from everest.system.events import Report, notice
from everest.system.json_text import read_json
from everest.system.text import counted
from everest.video.reader import frame_range, frame_times

Bouts = dict[str, list[Bout]]  # by video


def read_truth(path: Path, videos: Iterable[str]) -> tuple[Bouts, list[str]]:
    """Read the bouts of a person, in a file of any kind that `everest.annotations` reads.

    Args:
        videos: paths; a file may name them as `everest.annotations.matching` allows.
    Returns:
        The bouts of each video that has any, and the names that are none of the videos.
    Raises:
        DataError: the file cannot be read, or names none of the videos.
        VideoError: a video whose times a bout needs cannot be read.
    """
    paths = {Path(video): video for video in videos}
    names = VideoNames(paths)
    matched, unknown = match_videos(read_annotations(path, videos=names), names)
    if not matched:
        raise DataError(f"{path}: has no bout of these videos; it names {first_names(unknown) or 'none'}")
    return {paths[video]: bouts for video, bouts in matched.items()}, unknown


def read_drawn_length(path: Path) -> float | None:
    """The length that `everest budget --draw` wrote into a file that `read_truth` has read, in seconds.

    Returns:
        None: the file has none, as of an older version or another program.
    Raises:
        DataError: the file has several lengths, or none that is a number.
    """
    return read_window_length(path) if recognize(path) == "csv" else None


def read_timelines(path: Path) -> tuple[dict[str, tuple[float, float]], Bouts]:
    """Read the JSON of `everest predict --timeline`: start and end of each video, in seconds, and its bouts.

    Raises:
        DataError: the file is no such JSON, or the model has several heads.
    """
    extents, bouts = {}, []
    try:
        document = read_json(path)
        for row in document["timelines"] if isinstance(document, dict) else document:
            if row["windows"]:
                extents[row["video"]] = (float(row["windows"][0]["start"]), float(row["windows"][-1]["end"]))
                bouts += [
                    Bout(video=row["video"], start=one["start"], end=one["end"], label=one["label"])
                    for one in row["bouts"]
                    if one["label"] is not None
                ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: no timeline of one head, as `predict --timeline --json` writes: {why}"
        ) from error
    if not extents:
        raise DataError(f"{path}: no video of this timeline has a window")
    return extents, by_video(bouts)


def drawn_bouts(bouts: Sequence[Bout], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bouts of a person in the form of a model's bouts, for figures; `background` is left out.

    Args:
        classes: of the model; other labels follow them.
    """
    shown = [bout for bout in bouts if bout.label != BACKGROUND]
    labels = list(dict.fromkeys([*classes, *(bout.label for bout in shown)]))
    return [
        {
            **{"start": bout.start, "end": bout.end, "label": bout.label},
            **{"index": labels.index(bout.label), "probability": 1.0},
        }
        for bout in shown
    ]


def check_scored(heads: Heads) -> None:
    """Raise RecipeError unless the model has a single head, of classes and without a name."""
    if len(heads) != 1 or heads[0].task == "regression":
        raise RecipeError(
            "--truth: needs a model of one head of classes; this one has several heads, or numbers"
        )
    if heads[0].name:
        raise RecipeError(f"--truth: needs a model whose head has no name; this one is '{heads[0].name}'")


def score_timelines(
    samples: Sequence[Sample],
    rows: Sequence[Mapping[str, Any]],
    truth: Bouts,
    *,
    tolerance: float = TOLERANCE,
    report: Report,
) -> dict[str, Any]:
    """Return the metrics of timelines; a video that the truth does not name is left out, with a notice.

    Args:
        rows: of `predict_timeline` for the samples. Only the time of their windows is scored.
    Raises:
        DataError: no video of the truth was read.
    """
    videos = []
    for sample, row in zip(samples, rows, strict=True):
        bouts = truth.get(sample.path)
        if bouts is None:
            report(notice(f"{row['video']}: not scored: not in the truth"))
        elif row["windows"]:
            videos.append(_timelines(sample, row, bouts))
    if not videos:
        raise DataError("no video of the truth could be read")
    return timeline_metrics(videos, tolerance=tolerance)


def check_classes(truth: Bouts, classes: Sequence[str], *, report: Report) -> None:
    """Compare the classes of a truth with the classes of the model, which may lack some.

    Raises:
        DataError: the truth has classes, but none of the model.
    """
    used = [bout.label for of_video in truth.values() for bout in of_video if bout.label != BACKGROUND]
    unknown = {label: used.count(label) for label in used if label not in classes}
    for label, count in unknown.items():
        report(notice(f"the model has no class '{label}', of which the truth has {counted(count, 'bout')}"))
    if unknown and len(unknown) == len(set(used)):
        label = next(iter(unknown))
        raise DataError(f"the truth has no class of the model: '{label}'{did_you_mean(label, classes)}")


def _timelines(sample: Sample, row: Mapping[str, Any], truth: Sequence[Bout]) -> VideoTimelines:
    """The bouts of a video within the time of its windows."""
    begin, end = row["windows"][0]["start"], row["windows"][-1]["end"]
    times = frame_times(sample.video)
    first, last = frame_range(times, begin - 0.0005, end - 0.0005)  # the windows have milliseconds
    return VideoTimelines(
        times=times[first:last],
        end=end,
        truth=[
            Bout(
                video=bout.video,
                start=max(bout.start, begin),
                end=min(max(bout.end, begin), end),
                label=bout.label,
            )
            for bout in truth
            if bout.start < end and (bout.end > begin or bout.start >= begin)
        ],
        predicted=automated_bouts(row["video"], row["bouts"]),
        scores=[bout["probability"] for bout in row["bouts"] if bout["label"] is not None],
    )
