"""The commands of `everest prepare` for lists, splits, windows and annotations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import typer

from everest.config.heads import TaskName
from everest.errors import join_first
from everest.system.files import check_new_file, refuse_inputs
from everest.system.storage import parse_location
from everest.system.text import plural
from everest_cli import options as o
from everest_cli.bout_files import AnnotationKind, agreement_lines, choose_kind
from everest_cli.options import argument, find_root, local_path, option, refuse
from everest_cli.output import Display, exit_if_failed, hint, print_json, print_result, say

if TYPE_CHECKING:
    from everest.lists.sample import Sample
    from everest_workflows.annotations.codings import BoutFilter

MAX_HOURS: Final = 10_000_000  # more than 1000 years
MAX_NAMES: Final = 20  # heuristic: maximum number of groups that a line names


def index(
    folder: Path = argument("FOLDER", "The data set: data.root of a recipe.", parser=local_path),
    annotations: Path | None = option(
        "--annotations DIR", "Annotation folder [in FOLDER].", parser=local_path
    ),
    split: int = option("--split N", "Official split of UCF101 or HMDB51.", 1, min=1, max=3),
    exclude: list[Path] | None = option(
        "--exclude LIST",
        "List all videos for pre-training, without those of LIST; --output may name the list [pretrain.csv].",
        parser=local_path,
    ),
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Write lists from the annotations of a data set; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.config.yaml import write_yaml
    from everest.prepare.archives import PRETRAIN_LIST, write_index, write_unlabeled

    out = output or folder
    if exclude:
        refuse({"--annotations: has no effect with --exclude; leave it out": annotations})
        file = out if out.suffix == ".csv" else out / PRETRAIN_LIST
        document = write_unlabeled(folder, file, exclude=exclude, overwrite=overwrite)
    else:
        document = write_index(folder, out, annotations=annotations, split=split, overwrite=overwrite)
    lists = ", ".join(f"{name} {count}" for name, count in document["lists"].items())
    classes = f"; {plural(document['classes'], 'class')}" if document["classes"] else ""
    say(f"{document['layout']}: {lists}{classes}")
    if exclude:
        say(f"{plural(document['extra'], 'video')} left out")
    elif document["missing"] or document["extra"]:
        missing = plural(document["missing"], "video")
        say(f"{missing} missing, {document['extra']} in no list: {document['written'][-1]}")
    lines = write_yaml({"data": document["data"]}, width=1000).rstrip("\n")
    print_result(document, lines, as_json=as_json)


def split(
    source: Path = argument("SOURCE", "A list or a folder of class folders.", parser=local_path),
    fractions: str | None = option(
        "--shares A/B/C", "Fractions of train, val, test, or of train, test [70/15/15]."
    ),
    group: str | None = option(
        "--group folder|column:NAME|REGEX",
        "Keep videos together by folder, by a column, or by the match of (…) in the file name; "
        "path:REGEX, or a REGEX with /, matches the path below --data.",
    ),
    class_column: str | None = option("--class-column NAME", "Column with the classes [found by name]."),
    task: TaskName | None = o.TASK,
    seed: int = option("--seed N", "Equal seeds give equal splits.", 0, min=0),
    classes: Path | None = option("--classes FILE", "Class names in order, one per line.", parser=local_path),
    data: Path | None = o.LOCAL_ROOT,
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Split a data set into train, val and test: equal fractions of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.lists.writing import CLASSES_FILE
    from everest.prepare.split import DEFAULT_FRACTIONS, LabeledVideos, read_fractions

    parts = DEFAULT_FRACTIONS if fractions is None else read_fractions(fractions)
    root = find_root(source, data).absolute()
    videos = LabeledVideos.read(
        source, root=root, group=group, class_column=class_column, task=task, classes=classes
    )
    lists = videos.split(parts, seed=seed)
    folder = output or root
    is_elsewhere = folder.resolve() != root.resolve()  # only full paths are found from there
    written = list(videos.write(lists, folder, overwrite=overwrite, full_paths=is_elsewhere).values())
    say(*videos.notices)
    document = {
        "seed": seed,
        "shares": {name: round(fraction, 5) for name, fraction in parts.items()},
        "lists": _print_lists(lists, videos.class_names),
        "written": [*written, *([str(folder / CLASSES_FILE)] if videos.class_names else [])],
        "task": videos.task,
    }
    say(f"lists: {folder}")
    print_result(document, "\n".join(document["written"]), as_json=as_json)


def _print_lists(lists: Mapping[str, Sequence[Sample]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Print the size, groups and missing classes of each list; return the values of --json."""
    from everest.lists.labels import count_classes, number_statistics
    from everest.lists.sample import ListSize

    samples = list(chain(*lists.values()))
    unit = ListSize.of(samples).noun
    rows = {}
    every_class = count_classes(sample.labels[0] for sample in samples if sample.labels)
    for name, part in lists.items():
        labels = [sample.labels[0] for sample in part if sample.labels]
        counts = count_classes(labels)
        numbers = number_statistics(labels)
        groups = sorted({sample.group for sample in part if sample.group is not None})
        text = f"{name}: {plural(len(part), unit)} ({len(part) / len(samples):.1%})"
        if numbers:
            text += f", labels from {numbers['min']:g} to {numbers['max']:g}, mean {numbers['mean']:g}"
        if groups:
            text += f" of {plural(len(groups), 'group')}: {join_first(groups, MAX_NAMES)}"
        say(text)
        if empty := sorted(
            names[index] if names else str(index) for index in every_class.keys() - counts.keys()
        ):
            reason = f"which have too few {unit}s or groups to be in every list"
            say(f"{name} has no {unit} of {plural(len(empty), 'class')}, {reason}: {join_first(empty)}")
        classes = {names[index] if names else str(index): count for index, count in sorted(counts.items())}
        rows[name] = {"videos": len(part), "groups": groups, "classes": classes, "numbers": numbers}
    return rows


def windows(
    *,
    sources: list[Path] = o.VIDEOS,
    seconds: float = option("--seconds S", "Length of a window.", ..., min=0.01),
    output: Path = option("--output -o LIST", "The list to write (.csv).", ...),
    step: float | None = option("--step S", "Seconds between window starts [--seconds].", min=0.01),
    hours: float | None = option("--hours H", "Total hours of windows, spread evenly [no limit].", min=0),
    count: int | None = option("--count N", "Total number of windows [no limit].", min=1),
    labels: list[Path] | None = option(
        "--labels F", "Annotations of any kind that label the windows; repeatable."
    ),
    fps: float | None = o.FPS,
    whose: o.WhoseOptions,
    task: TaskName | None = option("--task", "Kind of labels [multi-label if classes overlap]."),
    seed: int = o.SEED,
    data: Path | None = o.LIST_ROOT,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Write a list of windows of long videos; of most intact files only one frame is decoded.

    Example: everest prepare windows RECORDINGS --seconds 10 --hours 5 -o windows.csv
    """
    from everest.lists.inputs import find_samples
    from everest_workflows.annotations.records import left_out_rows
    from everest_workflows.recordings.window_labels import read_bouts
    from everest_workflows.recordings.window_lists import WindowSettings, write_windows

    refuse(
        {
            "--hours and --count both limit the windows; use one of them": None not in (hours, count),
            f"--hours {hours}: must be at most {MAX_HOURS}": not (hours is None or hours <= MAX_HOURS),
            "--fps and --task need --labels": (fps or task) and not labels,
        }
    )
    bout_filter = whose.read(labels, option="--labels")
    number = count if hours is None else int(hours * 3600 / seconds)
    settings = WindowSettings(seconds=seconds, step=step or seconds, count=number, seed=seed)
    samples = find_samples(sources, root=data)
    inputs = [*sources, *(labels or []), *{sample.video for sample in samples}]
    refuse_inputs(output, inputs)
    check_new_file(output, overwrite=overwrite)
    with Display() as display:
        paths = [str(parse_location(sample.path).absolute()) for sample in samples]
        read = read_bouts(labels, paths, display.emit, bout_filter=bout_filter, fps=fps) if labels else None
        bouts = None if read is None else read.bouts
        document = write_windows(
            samples, output, settings, bouts=bouts, task=task, overwrite=overwrite, emit=display.emit
        )
    if read is not None:
        document["left_out"] = left_out_rows(read.left_out)
    print_result(document, output, as_json=as_json)
    _print_windows(document)
    exit_if_failed(document["failed"] or document["damaged"])


def _print_windows(document: dict[str, Any]) -> None:
    """Print the numbers of windows and labels, and the command that splits a labeled list."""
    numbers = f"{plural(document['windows'], 'window')} of {plural(document['videos'], 'video')}"
    hint(f"{numbers}, {document['hours']:.2f} hours")
    if "task" in document:
        task, classes = document["task"], document["classes"]
        hint(f"{task}: " + ", ".join(f"{name} {number}" for name, number in document["labels"].items()))
        words = ["everest", "prepare", "split", document["list"], "--group", "column:group"]
        words += [] if task == "single-label" else ["--task", task]
        words += [] if classes is None else ["--classes", classes]
        hint(f"next:\n  {shlex.join(words)}")


def convert_annotations(
    *,
    files: list[Path] = argument("FILE…", "Annotation files of any kind.", parser=local_path),
    fps: float | None = o.FPS,
    videos: list[Path] | None = option(
        "--videos DIR", "The annotated videos, or their folder; repeatable.", parser=local_path
    ),
    whose: o.WhoseOptions,
    to: AnnotationKind | None = option("--to", "Kind of --output [by its ending].", show_default=False),
    output: Path | None = option("--output -o OUT", "Convert to this file, or folder of files."),
    agreement: bool = option("--agreement", "Compare two observers: kappa, bouts, confusion.", False),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Read annotation files: print bouts and seconds per class, convert them, or compare two observers.

    everest prepare windows --labels makes a list of labeled windows of them.

    Example: everest prepare annotations project.boris --to elan -o elan
    """
    kind = choose_kind(output, to, get_args(AnnotationKind))

    from everest.lists.inputs import find_videos
    from everest_workflows.annotations.bout import LATEST_TIME, UNSCORED, group_by_label, group_by_video
    from everest_workflows.annotations.codings import read_video_annotations
    from everest_workflows.annotations.formats import plan_files, write_annotations
    from everest_workflows.annotations.matching import check_lengths
    from everest_workflows.annotations.records import left_out_rows

    paths = list(map(str, find_videos(videos or [])))
    bout_filter = whose.read(files, option="FILE")
    if agreement:
        refuse({"--agreement: leave out --output": output})
        document = _compare_observers(files, paths, bout_filter, fps)
        print_result(document, "\n".join(_describe_agreement(document)), as_json=as_json)
        return
    labels = read_video_annotations(files, paths, bout_filter=bout_filter, fps=fps)
    bouts_of, times, notices = check_lengths(labels.bouts) if videos else (labels.bouts, {}, [])
    bouts = [bout for video_bouts in bouts_of.values() for bout in video_bouts]
    unscored = [bout for bout in bouts if bout.label == UNSCORED]
    scored = [bout for bout in bouts if bout.label != UNSCORED]
    lengths = {label: [bout.seconds for bout in each] for label, each in group_by_label(scored).items()}
    classes = sorted(lengths.items(), key=lambda item: -sum(item[1]))  # the class with the most seconds first
    document: dict[str, Any] = {
        "videos": len({bout.video for bout in bouts}),
        "bouts": len(scored),
        "classes": {name: {"bouts": len(s), "seconds": round(sum(s), 3)} for name, s in classes},
        "unscored": {
            "videos": len({bout.video for bout in unscored}),
            "seconds": round(sum(bout.seconds for bout in unscored if bout.end < LATEST_TIME), 3),
        },
        "unmatched": labels.unmatched,
        "left_out": left_out_rows(labels.left_out),
        "written": [],
    }
    if kind is not None and output is not None:
        for file in plan_files(output, group_by_video(bouts), kind):
            refuse_inputs(file, [*files, *paths])
            check_new_file(file, overwrite=overwrite)
        written = write_annotations(output, bouts, kind, times=times)
        document["written"] = [str(file) for file in written]
    say(*_describe_bouts(document), *labels.notices, *notices)
    if as_json:
        print_json(document)
    elif document["written"]:
        typer.echo("\n".join(document["written"]))


def _compare_observers(
    files: Sequence[Path], paths: Sequence[str], bout_filter: BoutFilter, fps: float | None
) -> dict[str, Any]:
    from everest_workflows.annotations.codings import read_codings
    from everest_workflows.annotations.matching import check_lengths
    from everest_workflows.recordings.agreement import bouts_by_observer, measure_agreement

    read = read_codings(files, paths, bout_filter=bout_filter, fps=fps)
    observers = bouts_by_observer(read, bout_filter)
    _, times, notices = check_lengths(dict.fromkeys(read.by_video, ())) if paths else ({}, {}, [])
    say(*notices)
    return measure_agreement(observers, {path: each.seconds for path, each in times.items()})


def _describe_agreement(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each behavior, and the confusion in seconds, a row for each behavior."""
    yield from agreement_lines(document)
    if (confusion := document["confusion"]) is not None:
        first, second = document["observers"]
        width = max(map(len, confusion))
        yield f"seconds: rows {first}, columns {second}"
        yield "  " + " " * width + "".join(f"  {name:>11}" for name in confusion)
        for name, row in confusion.items():
            yield f"  {name:<{width}}" + "".join(f"  {seconds:>11.1f}" for seconds in row.values())


def _describe_bouts(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line for the bouts of each class, and for the time that is not scored."""
    yield f"{plural(document['videos'], 'video')}, {plural(document['bouts'], 'bout')}"
    for name, counts in document["classes"].items():
        yield f"  {name}: {plural(counts['bouts'], 'bout')}, {counts['seconds']:.1f} s"
    if (counts := document["unscored"])["videos"]:
        yield f"unscored in {plural(counts['videos'], 'video')}: {counts['seconds']:.1f} s"
