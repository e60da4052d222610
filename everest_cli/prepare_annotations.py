"""`everest prepare annotations`: bouts of annotation programs, converted or as labeled windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.annotations.kinds import Kind
from everest_cli import options as o
from everest_cli.option_values import Task, local_path
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.annotations.bout import Bout
    from everest.annotations.matching import VideoNames

SLACK = 1.0  # seconds after the end of a video from which on a bout is reported


def convert_annotations(
    files: Annotated[
        list[Path], typer.Argument(parser=local_path, metavar="FILE…", help="Annotation files of any kinds.")
    ],
    kind: Annotated[
        Kind | None, typer.Option("--kind", metavar="KIND", help="Kind of the files [by ending and content].")
    ] = None,
    fps: o.FileFps = None,
    videos: Annotated[
        list[Path] | None,
        typer.Option(
            "--videos",
            parser=local_path,
            metavar="DIR",
            help="The annotated videos, or their folder; repeatable.",
        ),
    ] = None,
    to: Annotated[
        Kind | None,
        typer.Option("--to", metavar="KIND", help="Convert to csv, boris, elan, … (docs/annotations.md)."),
    ] = None,
    windows: Annotated[
        float | None,
        typer.Option(
            "--windows", min=0.001, metavar="SECONDS", help="Write a list of labeled windows of this length."
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option("--step", min=0.001, metavar="SECONDS", help="Step of the windows [--windows]."),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option("--task", help="Labels of windows [multi-label if bouts of two classes overlap]."),
    ] = None,
    background: Annotated[
        str, typer.Option("--background", metavar="NAME", help="The class of windows without any.")
    ] = "background",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="File; a folder if a file is of one video."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Read annotations of times: print their classes, convert them, or write a list of labeled windows.

    Example: everest prepare annotations project.boris --videos VIDEOS --windows 2 -o windows.csv
    """
    from everest.errors import RecipeError

    if to is not None and windows is not None:
        raise RecipeError("--to converts and --windows labels; run the command once for each")
    if (to or windows) and output is None:
        raise RecipeError("--output: name the file to write")
    if not (to or windows) and output is not None:
        raise RecipeError(f"--output {output}: nothing to write; add --to or --windows")
    if windows is None and (step or task):
        raise RecipeError("--step and --task belong to --windows")
    if windows is not None and not videos:
        raise RecipeError("--windows: needs the lengths of the videos; name their folder by --videos")
    if task == "regression":
        raise RecipeError("--task regression: bouts have classes")

    from everest.annotations.formats import read_annotations
    from everest.annotations.labeled import seconds_of_classes
    from everest.annotations.matching import VideoNames
    from everest.lists.inputs import named_videos
    from everest.system.files import check_new_file, refuse_inputs

    names = VideoNames(named_videos(videos or []))
    bouts = [bout for file in files for bout in read_annotations(file, fps=fps, kind=kind, videos=names)]
    bouts, unmatched, notices = _matched(bouts, names) if videos else (bouts, [], [])
    classes = seconds_of_classes(bouts)
    document: dict[str, Any] = {
        "videos": len({bout.video for bout in bouts}),
        "bouts": len(bouts),
        "classes": {name: {"bouts": count, "seconds": round(s, 3)} for name, (count, s) in classes.items()},
        "unmatched": unmatched,
        "written": [],
    }
    if to is not None and output is not None:
        document["written"] = _convert(output, to, bouts, names, fps, files, overwrite=overwrite)
    elif windows is not None and output is not None:
        check_new_file(output, option="--output", overwrite=overwrite)
        refuse_inputs(output, [*files, *names.videos], option="--output")
        facts = _label(
            output,
            bouts,
            names,
            window=windows,
            step=step or windows,
            task=task,
            background=background,
            overwrite=overwrite,
        )
        document |= facts
    if not quiet:
        _show(document, notices)
    if as_json:
        print_json(document)
    elif document["written"]:
        typer.echo("\n".join(document["written"]))


def _matched(bouts: Sequence[Bout], names: VideoNames) -> tuple[list[Bout], list[str], list[str]]:
    """The bouts of the user's videos, by their paths; the annotated names without a video; notices."""
    from dataclasses import replace

    from everest.annotations.matching import match_videos
    from everest.errors import DataError, first_names

    matched, unmatched = match_videos(bouts, names)
    if bouts and not matched:
        raise DataError(
            f"no annotated video is in --videos: {first_names(unmatched)} in the annotations, "
            f"{first_names([video.name for video in names.videos])} in the folder"
        )
    notices = []
    if unmatched:
        notices.append(f"left out, no such video in --videos: {first_names(unmatched, 10)}")
    for video, of_video in matched.items():
        times = names.times(str(video))
        late = [bout for bout in of_video if times is not None and bout.end > times.seconds + SLACK]
        if late:
            notices.append(
                f"{video}: {len(late)} of {len(of_video)} bouts end after the video; they may be of "
                "another file, count frames at another rate, or run on over several files"
            )
    found = [replace(bout, video=str(video)) for video, each in matched.items() for bout in each]
    return found, unmatched, notices


def _convert(
    output: Path,
    to: Kind,
    bouts: Sequence[Bout],
    names: VideoNames,
    fps: float | None,
    files: Sequence[Path],
    *,
    overwrite: bool,
) -> list[str]:
    """Write the bouts as another kind; returns the files."""
    from everest.annotations.bout import by_video
    from everest.annotations.formats import files_of, write_annotations
    from everest.annotations.times import VideoTimes
    from everest.system.files import check_new_file, refuse_inputs

    times = {}
    for video, each in by_video(bouts).items():
        known = names.times(video)
        if known is None and fps is not None:
            known = VideoTimes.at_rate(fps, max(round(max(bout.end for bout in each) * fps), 1))
        if known is not None:
            times[video] = known
    for file in files_of(output, by_video(bouts), to):
        check_new_file(file, option="--output", overwrite=overwrite)
        refuse_inputs(file, [*files, *names.videos], option="--output")
    return [str(file) for file in write_annotations(output, bouts, to, times=times)]


def _label(
    output: Path,
    bouts: Sequence[Bout],
    names: VideoNames,
    *,
    window: float,
    step: float,
    task: Task | None,
    background: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Write the list of labeled windows of the annotated videos; returns its facts for `--json`."""
    from everest.annotations.bout import by_video
    from everest.annotations.labeled import uniform_windows
    from everest.annotations.matching import stem
    from everest.footage.labeled_list import write_labeled
    from everest.lists.sample import Sample

    of_videos = {str(Path(video).absolute()): each for video, each in by_video(bouts).items()}
    samples = [
        Sample(path=video, start=start, end=end, group=stem(video))
        for video in of_videos
        for times in [names.times(video)]
        if times is not None
        for start, end in uniform_windows(times.seconds, window, step)
    ]
    return write_labeled(output, samples, of_videos, task=task, background=background, overwrite=overwrite)


def _show(document: Mapping[str, Any], notices: Sequence[str]) -> None:
    """Print the summary on stderr."""
    from everest.system.text import counted

    say(f"{counted(document['videos'], 'video')}, {counted(document['bouts'], 'bout')}")
    for name, facts in document["classes"].items():
        say(f"  {name}: {counted(facts['bouts'], 'bout')}, {facts['seconds']:.1f} s")
    for notice in notices:
        say(notice)
    if "windows" in document:
        labels = ", ".join(f"{name} {count}" for name, count in document["labels"].items())
        say(f"{counted(document['windows'], 'window')} ({document['task']}): {labels}")
        file, *names = document["written"]
        task = [] if document["task"] == "single-label" else ["--task", document["task"]]
        words = [*("everest prepare split", file, "--group column:group"), *task]
        say("next:\n  " + " ".join([*words, *(["--classes", names[0]] if names else [])]))
