"""`everest prepare`: commands that make a data set usable; this file has those that read whole videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import typer

from everest.config.heads import TaskName
from everest.errors import EnvironmentProblem, RecipeError, join_first
from everest.system.files import check_writable, write_table
from everest.system.processes import num_cores
from everest.system.run_folder import BAD_COLUMNS, BAD_VIDEOS_FILE
from everest.system.text import plural
from everest_cli import options as o
from everest_cli import prepare_lists
from everest_cli.options import argument, find_root, grouped, is_on_cpu, local_path, option, refuse
from everest_cli.output import Display, exit_if_failed, hint, print_json, print_result, say

if TYPE_CHECKING:
    from everest.lists.reading import SampleList

app = typer.Typer(help="Make a data set usable: lists, splits, checks, faster files.", no_args_is_help=True)
MAX_BYTES: Final = 10**9  # maximum size of a shard's videos
CHECK_SECONDS: Final = 1800.0  # after which a video counts as bad
ENCODE_SECONDS: Final = 3600.0
PATHS_ROOT = option("--data DIR", "Folder that paths are relative to [the list's, or FOLDER].")
MAX_PROBLEMS: Final = 20  # maximum number of problems of each kind that are printed


def check(
    sources: list[Path] | None = argument(
        "SOURCE…", "Lists or folders, the training list first.", None, parser=local_path
    ),
    recipe: str | None = option(
        "--recipe -r R", "Recipe with the lists and classes.", callback=o.refuse_sweep
    ),
    data: Path | None = o.LOCAL_ROOT,
    overrides: list[str] | None = o.OVERRIDES,
    task: TaskName | None = o.TASK,
    output: Path | None = option(
        "--output -o DIR", "Folder for bad_videos.csv and progress [the current one]."
    ),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Check labels, decode every video, find duplicates; exit code 4 on failure.

    A stopped check resumes when the same command is repeated.

    Example: everest prepare check --recipe ucf101 --data /data/ucf101
    """
    from everest.lists.writing import refuse_existing
    from everest.prepare.check import CHECKED_FOLDER, check_lists

    lists, paths = _read_lists(sources or [], recipe, data=data, task=task, overrides=overrides)
    say(*(notice for samples in lists.values() for notice in samples.notices))
    folder = output or Path()
    checked, bad_videos = folder / CHECKED_FOLDER, folder / BAD_VIDEOS_FILE
    # Check that the output can be written, before hours of work.
    refuse_existing([bad_videos], overwrite=overwrite or checked.exists(), inputs=paths)
    try:
        check_writable(bad_videos)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{error}; name another folder by --output") from error
    with Display() as display:
        document = check_lists(
            lists,
            unlabeled_lists=[name for name in lists if Path(name).stem == "pretrain"],
            checked=checked,
            workers=num_cores(),
            timeout=CHECK_SECONDS,
            emit=display.emit,
            restart=overwrite,
        )
    bad = [(row["path"], row["reason"]) for row in document["bad"]]
    if bad:
        write_table(bad_videos, [BAD_COLUMNS, *bad])
    else:
        bad_videos.unlink(missing_ok=True)  # of an earlier check
    document |= {"written": [str(bad_videos)] if bad else []}
    if as_json:
        print_json(document)
    else:
        _print_check(document)
        typer.echo(f"written: {bad_videos}; progress: {checked}" if bad else f"progress: {checked}")
    exit_if_failed(bad or document["leaks"])  # copies within one list are only reported


def _read_lists(
    sources: list[Path],
    recipe: str | None,
    *,
    data: Path | None,
    task: TaskName | None,
    overrides: list[str] | None,
) -> tuple[dict[str, SampleList], list[Path]]:
    """Read the named lists and folders, or the lists of a recipe as its stages read them.

    Returns:
        The lists by name, the training list first, and their paths.
    """
    from everest.config.recipe import recipe_for_run
    from everest.lists.classes import Classes
    from everest.lists.reading import read_labeled
    from everest.lists.sources import read_source

    refuse(
        {
            "nothing to check: give a list or a folder, or --recipe": recipe is None and not sources,
            "--set needs --recipe, whose values it changes": recipe is None and overrides,
            f"--recipe {recipe} sets the lists and the task; leave out SOURCE and --task": (
                recipe and (sources or task)
            ),
        }
    )
    lists: dict[str, SampleList] = {}
    if recipe is None:
        known: dict[str, Any] = {"task": task}  # values found in the first list
        for source in sources:
            listed = read_labeled(source, root=find_root(source, data), **known, skip_missing=True)
            if not lists:
                heads = {"task": listed.task, "heads": listed.heads}
                known |= {"class_names": listed.class_names, **(heads if listed.heads else {})}
            lists[str(source)] = listed
        return lists, sources
    settings = recipe_for_run(recipe, data=data, overrides=overrides)
    section, classes = settings.data, None
    root, paths = local_path(section.root), []
    for key in ("train", "val", "test", "pretrain"):
        path = getattr(section, key)
        if path is None or path in paths:  # data.test may equal data.val
            continue
        paths.append(path)
        lists[key] = read_source(section, key, labeled=key != "pretrain", classes=classes, skip_missing=True)
        if key == "train":
            classes = Classes.of(lists[key], section)
    if not lists:
        raise RecipeError(f"{recipe}: names no lists; give lists or folders to check")
    return lists, [root / path for path in paths]


def _print_check(document: dict[str, Any]) -> None:
    from everest.prepare.check import RARE_BELOW, difference_text

    checked = plural(document["checked"], "video")
    typer.echo(f"{document['ok']} of {checked} decode completely")
    if document["frames"]:
        frames, seconds = document["frames"], document["seconds"]
        lengths = f", {seconds['min']:.2f} to {seconds['max']:.2f} s" if seconds else ""
        typer.echo(f"frames: {frames['min']} to {frames['max']}, median {frames['median']:g}{lengths}")
    counts = [row["videos"] for row in document["classes"]]
    if counts:
        fewest = "" if min(counts) == max(counts) else f"{min(counts)} to "
        typer.echo(f"classes: {len(counts)}, with {fewest}{plural(max(counts), 'video')} each")
    if document["rare_classes"]:
        rare = [f"{row['class']} ({row['videos']})" for row in document["rare_classes"]]
        typer.echo(f"warning: fewer than {RARE_BELOW} training videos: {join_first(rare, MAX_PROBLEMS)}")
    for row in document["class_differences"]:
        typer.echo(f"warning: {difference_text(row)}")
    problems = {"bad": [f"{row['path']}: {row['reason']}" for row in document["bad"]]}
    for leak, title in ((True, "in several lists"), (False, "twice in one list")):
        problems[title] = [
            f"{' = '.join(row['videos'])} ({', '.join(row['lists'])})"
            + (", with other labels" if row["labels_differ"] else "")
            for row in document["duplicates"]
            if row["leak"] == leak
        ]
    for title, lines in problems.items():
        if lines:
            typer.echo("\n  ".join([f"{title}: {len(lines)}", *lines[:MAX_PROBLEMS]]))
        if len(lines) > MAX_PROBLEMS:
            typer.echo(f"  … {len(lines) - MAX_PROBLEMS} more; --json lists all")


def encode(
    sources: list[str] = argument("LIST|FOLDER…", "Lists or folders of videos, or their URLs."),
    output: Path = option("--output -o DIR", "Folder for the files.", ...),
    data: str | None = PATHS_ROOT,
    short_side: int = option(
        "--short-side PIXELS", "Maximum; smaller videos keep their size.", 256, min=16
    ),  # heuristic, for crops of 224
    codec: Literal["h264", "mjpeg"] = option(
        "--codec", "mjpeg: 8 times the size, read 3 times as fast.", "h264"
    ),
    gop: int | None = option("--gop N", "Frames from keyframe to keyframe of h264 [12].", min=1, max=10**6),
    crf: int | None = option("--crf N", "Quality of h264 [18]; 0 is lossless.", min=0, max=51),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Re-encode videos for faster training; prints the new lists and folder.

    Worth it for large frames and distant keyframes; small files can grow. Use --codec mjpeg if training
    waits for videos: see "Is my GPU waiting?" in the documentation.

    Example: everest prepare encode train.csv test.csv --output small
    """
    from everest.lists.inputs import read_tables
    from everest.prepare.encode import EncodeSettings, encode_videos
    from everest.video.writer import H264, Mjpeg

    if codec == "mjpeg" and (gop is not None or crf is not None):
        raise RecipeError("--gop and --crf have no effect with --codec mjpeg; leave them out")
    # The defaults of both codecs have about the same PSNR: on ten real clips 39.9 and 39.2 dB, for luma 41.4
    # and 41.7 dB.
    encoder = Mjpeg(quality=90) if codec == "mjpeg" else H264(gop=gop or 12, crf=18 if crf is None else crf)
    with Display() as display:
        document = encode_videos(
            list(read_tables(sources, data)),
            output,
            EncodeSettings(short_side=short_side, codec=encoder),
            workers=num_cores(),
            timeout=ENCODE_SECONDS,
            overwrite=overwrite,
            emit=display.emit,
        )
    print_result(document, "\n".join(document["lists"] or [str(output)]), as_json=as_json)
    size = document["bytes"]
    counts = (
        f"{document['videos']} videos, {document['encoded']} encoded now, {len(document['failed'])} failed"
    )
    hint(f"{counts}; {size['before'] / 1e6:.1f} MB became {size['after'] / 1e6:.1f} MB")
    exit_if_failed(document["failed"])


def shard(
    source: str = argument("LIST", "A list or folder of videos, or its URL."),
    output: Path = option("--output -o DIR", "Folder for the shards.", ...),
    data: str | None = PATHS_ROOT,
    count: int = option("--count N", "Largest number of videos in a shard.", 10000, min=1),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Write the videos of a list to WebDataset tar files; prints the index for data.train.

    Example: everest prepare shard train.csv --output shards
    """
    from everest.lists.inputs import read_tables
    from everest.lists.reading import refuse_split_folders
    from everest.prepare.shard import write_shards

    (videos,) = read_tables([source], data)
    if not videos.is_list:
        refuse_split_folders(videos.location)
    with Display() as display:
        document = write_shards(
            videos, output, max_bytes=MAX_BYTES, max_count=count, overwrite=overwrite, emit=display.emit
        )
    hint(f"{document['videos']} videos, shards: {document['shards']}, {document['bytes'] / 1e6:.1f} MB")
    print_result(document, document["index"], as_json=as_json)


def tokens(
    recipe: str = o.RECIPE,
    output: Path = option("--output -o DIR", "Folder for the tokens.", ...),
    variants: int = option(
        "--variants N", "Clips per video; later epochs repeat them.", 4, min=1, max=10_000
    ),
    data: str | None = o.DATA_ROOT,
    overrides: list[str] | None = o.OVERRIDES,
    batch: int = option("--batch N", "Videos in one forward pass.", 8, min=1, max=o.MAX_CLIPS),
    gpus: str = o.ONE_GPU,
    overwrite: bool = o.OVERWRITE,
    as_json: bool = o.AS_JSON,
) -> None:
    """Cache a tokenizer's output; prints the value for pretrain.target.cache.

    A repeated call resumes a stopped one, or adds more variants.

    Example: everest prepare tokens --recipe lvmae-128 --set tokenizer.checkpoint=RUN --output tokens
    """
    from everest.checkpoints.frozen import with_absolute_paths
    from everest.config.recipe import recipe_for_run
    from everest.tokenizer.cache import write_tokens

    if recipe_for_run(recipe, data=data, overrides=overrides).pretrain.teacher is not None:
        raise RecipeError(f"{recipe}: predicts a teacher's features; only a tokenizer's output is cached")
    changes = [*(overrides or []), f"pretrain.target.cache={json.dumps(str(output))}"]  # also checks the path
    settings = with_absolute_paths(recipe_for_run(recipe, data=data, overrides=changes))
    with Display() as display:
        document = write_tokens(
            settings,
            output,
            variants=variants,
            batch=batch,
            cpu=is_on_cpu(gpus),
            overwrite=overwrite,
            emit=display.emit,
        )
    clips, skipped = document["videos"] * document["variants"], len(document["bad"])
    hint(f"{clips} clips, {document['bytes'] / 1e6:.1f} MB; {skipped} videos skipped")
    print_result(document, output, as_json=as_json)


# Commands in the order of help.
for name, command, line in (
    ("index", prepare_lists.index, "Write lists from the annotations of a data set."),
    ("annotations", prepare_lists.convert_annotations, "Convert annotations of times; label windows."),
    ("split", prepare_lists.split, "Divide videos into train, val and test lists."),
    ("windows", prepare_lists.windows, "List windows of long videos."),
    ("check", check, "Decode every video, verify labels, find copies."),
    ("encode", encode, "Re-encode videos so that training reads them faster."),
    ("shard", shard, "Pack the videos of a list into tar files."),
    ("tokens", tokens, "Cache the outputs of LVMAE's tokenizer."),
):
    app.command(name, short_help=line)(grouped(command))
