"""`everest prepare annotations`: bouts of annotation programs, counted or converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.annotations.kinds import Kind
from everest.errors import DataError, RecipeError, first_names
from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.annotations.bout import Bout
    from everest.annotations.matching import VideoNames


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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="File; a folder if a file is of one video."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Read annotations of times: print their classes, or convert them.

    everest prepare windows --labels makes a list of labeled windows of them.

    Example: everest prepare annotations project.boris --to elan -o elan
    """
    if to is not None and output is None:
        raise RecipeError("--output: name the file to write")
    if to is None and output is not None:
        raise RecipeError(f"--output {output}: nothing to write; add --to")

    from everest.annotations.bout import LONGEST, UNSCORED
    from everest.annotations.formats import read_annotations
    from everest.annotations.labeled import seconds_of_classes
    from everest.annotations.matching import VideoNames
    from everest.lists.inputs import named_videos

    names = VideoNames(named_videos(videos or []))
    bouts = [bout for file in files for bout in read_annotations(file, fps=fps, kind=kind, videos=names)]
    bouts, unmatched, notices = _matched(bouts, names) if videos else (bouts, [], [])
    classes = seconds_of_classes([bout for bout in bouts if bout.label != UNSCORED])
    unscored = [bout for bout in bouts if bout.label == UNSCORED]
    document: dict[str, Any] = {
        "videos": len({bout.video for bout in bouts}),
        "bouts": len(bouts) - len(unscored),
        "classes": {name: {"bouts": count, "seconds": round(s, 3)} for name, (count, s) in classes.items()},
        "unscored": {
            "videos": len({bout.video for bout in unscored}),
            "seconds": round(sum(bout.seconds for bout in unscored if bout.end < LONGEST), 3),
        },
        "unmatched": unmatched,
        "written": [],
    }
    if to is not None and output is not None:
        document["written"] = _convert(output, to, bouts, names, fps, files, overwrite=overwrite)
    if not quiet:
        _show(document, notices)
    if as_json:
        print_json(document)
    elif document["written"]:
        typer.echo("\n".join(document["written"]))


def _matched(bouts: Sequence[Bout], names: VideoNames) -> tuple[list[Bout], list[str], list[str]]:
    """The bouts of the user's videos, by their paths; the annotated names without a video; notices."""
    from dataclasses import replace

    from everest.annotations.bout import LONGEST
    from everest.annotations.matching import late_notices, match_videos
    from everest.annotations.scored import unscored_until
    from everest.video.stream import VideoError

    matched, unmatched = match_videos(bouts, names)
    if bouts and not matched:
        raise DataError(
            f"no annotated video is in --videos: {first_names(unmatched)} in the annotations, "
            f"{first_names([video.name for video in names.videos])} in the folder"
        )
    ends, notices = {}, []
    if unmatched:
        notices.append(f"left out, no such video in --videos: {first_names(unmatched, 10)}")
    for video in matched:
        try:
            times = names.times(str(video))
            ends |= {} if times is None else {video: times.seconds}
        except VideoError as error:
            notices.append(f"{error}; whether its bouts fit in it is not known")
    notices += late_notices(matched, ends)
    found = [
        replace(bout, video=str(video))
        for video, each in matched.items()
        for bout in unscored_until(each, ends.get(video, LONGEST))
    ]
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
    from everest.annotations.bout import LONGEST, by_video
    from everest.annotations.formats import FORMATS, files_of, write_annotations
    from everest.annotations.times import VideoTimes
    from everest.system.files import check_new_file, refuse_inputs
    from everest.video.stream import VideoError

    times = {}
    for video, each in by_video(bouts).items():
        try:
            known = names.times(video)
        except VideoError:  # of which `_matched` has given a notice
            if FORMATS[to].needs_times and fps is None:
                raise
            known = None
        if known is None and fps is not None:
            end = max((bout.end for bout in each if bout.end < LONGEST), default=LONGEST)
            known = VideoTimes.until(end, fps, video)
        if known is not None:
            times[video] = known
    for file in files_of(output, by_video(bouts), to):
        refuse_inputs(file, [*files, *names.videos], option="--output")
        check_new_file(file, option="--output", overwrite=overwrite)
    return [str(file) for file in write_annotations(output, bouts, to, times=times)]


def _show(document: Mapping[str, Any], notices: Sequence[str]) -> None:
    """Print the summary on stderr."""
    from everest.system.text import counted

    say(f"{counted(document['videos'], 'video')}, {counted(document['bouts'], 'bout')}")
    for name, facts in document["classes"].items():
        say(f"  {name}: {counted(facts['bouts'], 'bout')}, {facts['seconds']:.1f} s")
    if document["unscored"]["videos"]:
        facts = document["unscored"]
        say(f"unscored in {counted(facts['videos'], 'video')}: {facts['seconds']:.1f} s")
    for notice in notices:
        say(notice)
