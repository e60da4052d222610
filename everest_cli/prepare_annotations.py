"""`everest prepare annotations`: bouts of annotation programs, counted or converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from everest.errors import DataError, first_names
from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import print_json, say
from everest_cli.timeline_options import AnnotationKind, kind_of

if TYPE_CHECKING:
    from everest.annotations.bout import Bout
    from everest.annotations.matching import VideoNames
    from everest.annotations.times import VideoTimes


def convert_annotations(
    files: Annotated[
        list[Path], typer.Argument(parser=local_path, metavar="FILE…", help="Annotation files of any kind.")
    ],
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
        AnnotationKind | None,
        typer.Option("--to", help="Kind of --output [by its ending].", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Convert to this file, or folder of files."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Read annotation files: print bouts and seconds per class, or convert them.

    everest prepare windows --labels makes a list of labeled windows of them.

    Example: everest prepare annotations project.boris --to elan -o elan
    """
    kind = kind_of(output, to, get_args(AnnotationKind))

    from everest.annotations.bout import LONGEST, UNSCORED, by_video
    from everest.annotations.formats import files_of, read_annotations, write_annotations
    from everest.annotations.labeled import seconds_of_classes
    from everest.annotations.matching import VideoNames
    from everest.lists.inputs import named_videos
    from everest.system.files import check_new_file, refuse_inputs

    names = VideoNames(named_videos(videos or []))
    bouts = [bout for file in files for bout in read_annotations(file, fps=fps, videos=names)]
    unmatched, notices, times = [], [], {}
    if videos:
        bouts, unmatched, notices, times = _matched(bouts, names)
    unscored = [bout for bout in bouts if bout.label == UNSCORED]
    classes = seconds_of_classes([bout for bout in bouts if bout.label != UNSCORED])
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
    if kind is not None and output is not None:
        for file in files_of(output, by_video(bouts), kind):
            refuse_inputs(file, [*files, *names.videos], option="--output")
            check_new_file(file, option="--output", overwrite=overwrite)
        document["written"] = [str(file) for file in write_annotations(output, bouts, kind, times=times)]
    _show(document, notices)
    if as_json:
        print_json(document)
    elif document["written"]:
        typer.echo("\n".join(document["written"]))


def _matched(
    bouts: Sequence[Bout], names: VideoNames
) -> tuple[list[Bout], list[str], list[str], dict[str, VideoTimes]]:
    """The bouts of the user's videos, by their paths; the annotated names without a video; notices; times."""
    from dataclasses import replace

    from everest.annotations.bout import LONGEST, UNSCORED
    from everest.annotations.matching import late_notices, match_videos
    from everest.annotations.times import VideoTimes
    from everest.video.stream import VideoError

    matched, unmatched = match_videos(bouts, names)
    if bouts and not matched:
        raise DataError(
            f"--videos: no file matches the annotations, which name {first_names(unmatched)}; "
            f"--videos has {first_names([video.name for video in names.videos])}"
        )
    notices, times = [], {}
    if unmatched:
        notices.append(f"left out, not found in --videos: {first_names(unmatched, 10)}")
    for video in matched:
        try:
            times[video] = VideoTimes.of(str(video))
        except VideoError as error:
            notices.append(f"{error}; its bouts were not checked against its length")
    ends = {video: of.seconds for video, of in times.items()}
    notices += late_notices(matched, ends)
    found = []
    for video, each in matched.items():
        end = ends.get(video, LONGEST)  # unscored time ends with the video
        for bout in each:
            if bout.label != UNSCORED:
                found.append(replace(bout, video=str(video)))
            elif bout.start < end:
                found.append(replace(bout, video=str(video), end=min(bout.end, end)))
    return found, unmatched, notices, {str(video): of for video, of in times.items()}


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
