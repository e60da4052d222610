"""A timeline next to the truth: the bouts of a person, found for each video, and the metrics of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from everest.annotations.bout import BACKGROUND, UNSCORED, Bout, by_video
from everest.annotations.bout_table import read_window_length
from everest.annotations.formats import read_annotations, recognize
from everest.annotations.matching import VideoNames, match_videos
from everest.annotations.scored import Span, spans_outside, unscored_spans
from everest.config.heads import Heads
from everest.errors import DataError, RecipeError, did_you_mean, first_names
from everest.inference.bouts import automated_bouts
from everest.lists.sample import Sample
from everest.metrics.timeline import VideoTimelines, timeline_metrics
from everest.system.events import Report, notice
from everest.system.json_text import read_json
from everest.system.text import counted
from everest.video.reader import frame_range, frame_times

Bouts = dict[str, list[Bout]]  # by video


def read_truth(path: Path, videos: Iterable[str], *, keep_windows: bool = False) -> tuple[Bouts, list[str]]:
    """Read the bouts of a person, in a file of any kind that `everest.annotations` reads.

    Args:
        videos: paths; a file may name them as `everest.annotations.matching` allows.
        keep_windows: see `read_annotations`.
    Returns:
        The bouts of each video that has any, and the names that are none of the videos.
    """
    paths = {Path(video): video for video in videos}
    names = VideoNames(paths)
    matched, unknown = match_videos(read_annotations(path, videos=names, keep_windows=keep_windows), names)
    if not matched:
        raise DataError(f"{path}: has no bout of these videos; it names {first_names(unknown) or 'none'}")
    return {paths[video]: bouts for video, bouts in matched.items()}, unknown


def read_drawn_length(path: Path) -> float | None:
    """The length that `everest budget --draw` wrote into a file that `read_truth` has read, in seconds.

    Returns:
        None: the file has none, as of another program.
    """
    return read_window_length(path) if recognize(path) == "csv" else None


def read_timelines(path: Path) -> tuple[dict[str, tuple[float, float]], Bouts]:
    """Read the JSON of `everest predict --timeline`: each video's start and end in seconds, and its bouts."""
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


def drawn_bouts(
    bouts: Sequence[Bout], classes: Sequence[str], begin: float, end: float
) -> list[dict[str, Any]]:
    """Return the bouts of a person in the form of a model's bouts, for figures.

    Time without a bout is background. Unscored time has no bout.

    Args:
        classes: of the model; other labels follow them.
        begin, end: seconds: the time that is drawn.
    """
    shown = [bout for bout in bouts if bout.label not in (BACKGROUND, UNSCORED)]
    taken = [(bout.start, bout.end) for bout in bouts if bout.label != BACKGROUND]
    labels = list(dict.fromkeys([*classes, *(bout.label for bout in shown)]))
    spans = [(bout.start, bout.end, bout.label, labels.index(bout.label)) for bout in shown]
    spans += [(start, stop, None, None) for start, stop in spans_outside([(0.0, begin), *taken], end)]
    keys = ("start", "end", "label", "index")
    return [dict(zip(keys, span, strict=True)) | {"probability": 1.0} for span in spans]


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
    report: Report,
) -> dict[str, Any]:
    """Return the metrics of timelines; a video that the truth does not name is left out, with a notice.

    Unscored time does not count: each stretch between is scored as a timeline of its own.

    Args:
        rows: of `predict_timeline` for the samples. Only the time of their windows is scored.
    Returns:
        `timeline_metrics`, and `unscored`: the seconds that do not count.
    """
    stretches: list[VideoTimelines] = []
    videos, unscored = 0, 0.0
    for sample, row in zip(samples, rows, strict=True):
        bouts = truth.get(sample.path)
        if bouts is None:
            report(notice(f"{row['video']}: not scored: not in the truth"))
        elif row["windows"]:
            begin, end = row["windows"][0]["start"], row["windows"][-1]["end"]
            cuts = [(0.0, begin), *unscored_spans(bouts)]
            scored = spans_outside(cuts, end)
            found = _timelines(sample, row, bouts, scored)
            stretches += found
            videos += bool(found)
            unscored += end - begin - sum(stop - start for start, stop in scored)
    if unscored:
        report(notice(f"not scored: {unscored:.1f} s that no one has labeled (unscored)"))
    if not stretches:
        why = "all time of the videos is unscored" if unscored else "no video of the truth could be read"
        raise DataError(why)
    return {
        **timeline_metrics(stretches),
        "videos": videos,
        "unscored": round(unscored, 3),
    }


def check_classes(truth: Bouts, classes: Sequence[str], *, report: Report) -> None:
    """Compare the classes of a truth with the classes of the model, which may lack some."""
    every = [bout.label for of_video in truth.values() for bout in of_video]
    used = [label for label in every if label not in (BACKGROUND, UNSCORED)]
    unknown = {label: used.count(label) for label in used if label not in classes}
    for label, count in unknown.items():
        report(notice(f"the model has no class '{label}', of which the truth has {counted(count, 'bout')}"))
    if unknown and len(unknown) == len(set(used)):
        label = next(iter(unknown))
        raise DataError(f"the truth has no class of the model: '{label}'{did_you_mean(label, classes)}")


def _timelines(
    sample: Sample, row: Mapping[str, Any], truth: Sequence[Bout], stretches: Sequence[Span]
) -> list[VideoTimelines]:
    """The bouts of a video in each stretch of time that has a frame."""
    times = frame_times(sample.video)
    bouts = [bout for bout in truth if bout.label != UNSCORED]
    predicted = automated_bouts(row["video"], row["bouts"])
    probabilities = [bout["probability"] for bout in row["bouts"] if bout["label"] is not None]
    found = []
    for begin, end in stretches:
        first, last = frame_range(times, begin - 0.0005, end - 0.0005)  # the windows have milliseconds
        inside = [(_cut(bout, begin, end), p) for bout, p in zip(predicted, probabilities, strict=True)]
        pairs = [(bout, probability) for bout, probability in inside if bout is not None]
        if first < last:
            found.append(
                VideoTimelines(
                    times=times[first:last],
                    end=end,
                    truth=[cut for bout in bouts if (cut := _cut(bout, begin, end)) is not None],
                    predicted=[bout for bout, _ in pairs],
                    scores=[probability for _, probability in pairs],
                )
            )
    return found


def _cut(bout: Bout, begin: float, end: float) -> Bout | None:
    """The part of a bout in a stretch of time; None if it has none."""
    if not bout.start < end or not (bout.end > begin or bout.start >= begin):
        return None
    return replace(bout, start=max(bout.start, begin), end=min(max(bout.end, begin), end))
