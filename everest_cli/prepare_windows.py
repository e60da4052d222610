"""`everest prepare windows` and `everest prepare annotations`: parts of long videos and their labels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final, Literal, get_args

import typer

from everest.system.files import check_new_file, refuse_inputs
from everest.system.storage import parse_location
from everest.system.text import counted
from everest_cli import options as o
from everest_cli.options import Task, argument, local_path, option, refuse
from everest_cli.output import Display, exit_if_failed, print_json, print_result, say
from everest_cli.timeline import AnnotationKind, kind_of

MOST_HOURS: Final = 10_000_000  # more than 1000 years


def windows(
    sources: list[Path] = o.VIDEOS,
    seconds: float = option("--seconds S", "Length of a window.", ..., min=0.01),
    output: Path = option("--output -o LIST", "The list to write (.csv).", ...),
    step: float | None = option("--step S", "Seconds between window starts [--seconds].", min=0.01),
    hours: float | None = option("--hours H", "Total hours of windows [no limit].", min=0),
    count: int | None = option("--count N", "Total number of windows [no limit].", min=1),
    by: Literal["uniform", "activity"] = option(
        "--by", "Spread evenly, or mostly where something moves.", "uniform"
    ),
    labels: list[Path] | None = option(
        "--labels F", "Annotations of any kind that label the windows; repeatable."
    ),
    fps: float | None = o.FPS,
    observer: list[str] | None = o.OBSERVER,
    subject: str | None = o.SUBJECT,
    task: Task | None = option("--task", "Kind of labels [multi-label if classes overlap]."),
    seed: int = o.SEED,
    data: Path | None = o.LIST_ROOT,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Write a list of windows of long videos; intact files are not decoded.

    Example: everest prepare windows RECORDINGS --seconds 10 --hours 5 --by activity -o windows.csv
    """
    from everest.annotations.labels import WhoseBouts
    from everest.annotations.records import left_out_rows
    from everest.lists.inputs import named_samples
    from everest.prepare.windows import WindowSettings, read_bouts, write_windows

    refuse(
        {
            "--hours and --count both limit the windows; use one of them": None not in (hours, count),
            f"--hours {hours}: must be at most {MOST_HOURS}": not (hours is None or hours <= MOST_HOURS),
            "--fps and --task need --labels": (fps or task) and not labels,
            "--observer and --subject need --labels": (observer or subject) and not labels,
        }
    )
    settings = WindowSettings(
        seconds=seconds,
        step=seconds if step is None else step,
        by=by,
        count=count if hours is None else int(hours * 3600 / seconds),
        seed=seed,
    )
    samples = named_samples(sources, root=data)
    inputs = [*sources, *(labels or []), *{sample.video for sample in samples}]
    refuse_inputs(output, inputs)
    check_new_file(output, overwrite=overwrite)
    with Display(quiet=quiet) as display:
        paths = [str(parse_location(sample.path).absolute()) for sample in samples]
        whose = WhoseBouts(observers=observer or (), subject=subject)
        read = read_bouts(labels, paths, display.report, whose=whose, fps=fps) if labels else None
        bouts = None if read is None else read.bouts
        document = write_windows(
            samples, output, settings, bouts=bouts, task=task, overwrite=overwrite, report=display.report
        )
    if read is not None:
        document["left_out"] = left_out_rows(read.left_out)
    print_result(document, output, as_json=as_json)
    if not quiet:
        _say_windows(document)
    exit_if_failed(document["failed"] or document["damaged"])


def _say_windows(document: dict[str, Any]) -> None:
    """Print the numbers of windows and labels, and the command that splits a labeled list."""
    numbers = f"{counted(document['windows'], 'window')} of {counted(document['videos'], 'video')}"
    say(f"{numbers}, {document['hours']:.2f} hours")
    if "task" not in document:
        return
    task, classes = document["task"], document["classes"]
    say(f"{task}: " + ", ".join(f"{name} {number}" for name, number in document["labels"].items()))
    words = ["everest", "prepare", "split", document["list"], "--group", "column:group"]
    words += [] if task == "single-label" else ["--task", task]
    words += [] if classes is None else ["--classes", classes]
    say(f"next:\n  {shlex.join(words)}")


def convert_annotations(
    files: list[Path] = argument("FILE…", "Annotation files of any kind.", parser=local_path),
    fps: float | None = o.FPS,
    videos: list[Path] | None = option(
        "--videos DIR", "The annotated videos, or their folder; repeatable.", parser=local_path
    ),
    observer: list[str] | None = o.OBSERVER,
    subject: str | None = o.SUBJECT,
    to: AnnotationKind | None = option("--to", "Kind of --output [by its ending].", show_default=False),
    output: Path | None = option("--output -o OUT", "Convert to this file, or folder of files."),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Read annotation files: print bouts and seconds per class, or convert them.

    everest prepare windows --labels makes a list of labeled windows of them.

    Example: everest prepare annotations project.boris --to elan -o elan
    """
    kind = kind_of(output, to, get_args(AnnotationKind))

    from everest.annotations.bout import LONGEST, UNSCORED, by_label, by_video
    from everest.annotations.formats import files_of, write_annotations
    from everest.annotations.labels import WhoseBouts, read_labels
    from everest.annotations.matching import checked_lengths
    from everest.annotations.records import left_out_rows
    from everest.lists.inputs import named_videos

    paths = list(map(str, named_videos(videos or [])))
    whose = WhoseBouts(observers=observer or (), subject=subject)
    labels = read_labels(files, paths, whose=whose, fps=fps)
    bouts_of, times, notices = checked_lengths(labels.bouts) if videos else (labels.bouts, {}, [])
    bouts = [bout for video_bouts in bouts_of.values() for bout in video_bouts]
    unscored = [bout for bout in bouts if bout.label == UNSCORED]
    scored = [bout for bout in bouts if bout.label != UNSCORED]
    lengths = {label: [bout.seconds for bout in each] for label, each in by_label(scored).items()}
    classes = sorted(lengths.items(), key=lambda item: -sum(item[1]))  # the class with the most seconds first
    document: dict[str, Any] = {
        "videos": len({bout.video for bout in bouts}),
        "bouts": len(scored),
        "classes": {name: {"bouts": len(s), "seconds": round(sum(s), 3)} for name, s in classes},
        "unscored": {
            "videos": len({bout.video for bout in unscored}),
            "seconds": round(sum(bout.seconds for bout in unscored if bout.end < LONGEST), 3),
        },
        "unmatched": labels.unmatched,
        "left_out": left_out_rows(labels.left_out),
        "written": [],
    }
    if kind is not None and output is not None:
        for file in files_of(output, by_video(bouts), kind):
            refuse_inputs(file, [*files, *paths])
            check_new_file(file, overwrite=overwrite)
        written = write_annotations(output, bouts, kind, times=times)
        document["written"] = [str(file) for file in written]
    say(f"{counted(document['videos'], 'video')}, {counted(document['bouts'], 'bout')}")
    for name, facts in document["classes"].items():
        say(f"  {name}: {counted(facts['bouts'], 'bout')}, {facts['seconds']:.1f} s")
    if unscored:
        facts = document["unscored"]
        say(f"unscored in {counted(facts['videos'], 'video')}: {facts['seconds']:.1f} s")
    say(*labels.notices, *notices)
    if as_json:
        print_json(document)
    elif document["written"]:
        typer.echo("\n".join(document["written"]))
