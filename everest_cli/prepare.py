"""`everest prepare`: the commands that make a data set usable; here those that write lists and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import typer

from everest.errors import RecipeError, first_names
from everest.system.processes import num_cores
from everest.system.text import counted
from everest_cli import options as o
from everest_cli import prepare_check, prepare_windows
from everest_cli.options import Task, argument, is_on_cpu, local_path, option, root_of
from everest_cli.output import Display, exit_if_failed, print_result, say

if TYPE_CHECKING:
    from everest.lists.sample import Sample

app = typer.Typer(help="Make a data set usable: lists, splits, checks, faster files.", no_args_is_help=True)
MOST_BYTES: Final = 10**9  # of the videos of a shard
ROOT = option("--data DIR", "Folder that paths are relative to [the list's, or FOLDER].")
MOST_NAMES: Final = 20  # heuristic: groups that a line names


def index(
    folder: Path = argument("FOLDER", "The data set: data.root of a recipe.", parser=local_path),
    annotations: Path | None = option(
        "--annotations DIR", "Folder of the annotations, if not below FOLDER.", parser=local_path
    ),
    split: int = option("--split N", "Official split of UCF101 or HMDB51.", 1, min=1, max=3),
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Write lists from the annotations of a data set; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.config.yaml import write_yaml
    from everest.prepare.index import index_folder, write_index

    result = index_folder(folder, annotations=annotations, split=split)
    document = write_index(result, output or folder, overwrite=overwrite)
    lists = ", ".join(f"{name} {count}" for name, count in document["lists"].items())
    classes = f"; {counted(len(result.class_names), 'class')}" if result.class_names else ""
    say(f"{document['layout']}: {lists}{classes}")
    if document["missing"] or document["extra"]:
        missing = counted(document["missing"], "video")
        say(f"{missing} missing, {document['extra']} in no list: {document['written'][-1]}")
    lines = write_yaml({"data": document["data"]}, width=1000).rstrip("\n")
    print_result(document, lines, as_json=as_json)


def split(
    source: Path = argument("SOURCE", "A list or a folder of class folders.", parser=local_path),
    shares: str | None = option(
        "--shares A/B/C", "Shares of train, val and test, or of train and test [70/15/15]."
    ),
    group: str | None = option(
        "--group folder|column:NAME|REGEX",
        "Keep videos together by folder, by a column, or by the match of (…) in the file name; "
        "path:REGEX, or a REGEX with /, matches the path below --data.",
    ),
    class_column: str | None = option("--class-column NAME", "Column with the classes [found by name]."),
    task: Task | None = o.TASK,
    seed: int = option("--seed N", "Equal seeds give equal splits.", 0, min=0),
    classes: Path | None = option("--classes FILE", "Class names in order, one per line.", parser=local_path),
    data: Path | None = o.LOCAL_ROOT,
    output: Path | None = o.LISTS_FOLDER,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Split a data set into train, val and test: equal shares of every class, groups kept together.

    Example: everest prepare split all.csv --shares 80/20 --group '_g(\\d+)_'
    """
    from everest.prepare.index import CLASSES
    from everest.prepare.split import SHARES, LabeledVideos, read_shares

    parts = SHARES if shares is None else read_shares(shares)
    root = root_of(source, data).absolute()
    videos = LabeledVideos.read(
        source, root=root, group=group, class_column=class_column, task=task, classes=classes
    )
    lists = videos.split(parts, seed=seed)
    folder = output or root
    written = list(videos.write(lists, folder, overwrite=overwrite).values())
    say(*videos.notices)
    document = {
        "seed": seed,
        "shares": {name: round(share, 5) for name, share in parts.items()},
        "lists": _say_lists(lists, videos.class_names),
        "written": [*written, *([str(folder / CLASSES)] if videos.class_names else [])],
        "task": videos.task,
    }
    say(f"lists: {folder}")
    print_result(document, "\n".join(document["written"]), as_json=as_json)


def _say_lists(lists: Mapping[str, Sequence[Sample]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Print the size, groups and missing classes of each list; returns its facts for --json."""
    from everest.lists.labels import count_classes, number_facts
    from everest.lists.sample import ListSize

    samples = list(chain(*lists.values()))
    unit, facts = ListSize.of(samples).unit, {}
    every_class = count_classes(sample.labels[0] for sample in samples if sample.labels)
    for name, part in lists.items():
        labels = [sample.labels[0] for sample in part if sample.labels]
        counts, numbers = count_classes(labels), number_facts(labels)
        groups = sorted({sample.group for sample in part if sample.group is not None})
        text = f"{name}: {counted(len(part), unit)} ({len(part) / len(samples):.1%})"
        if numbers:
            text += f", labels from {numbers['min']:g} to {numbers['max']:g}, mean {numbers['mean']:g}"
        if groups:
            text += f" of {counted(len(groups), 'group')}: {first_names(groups, MOST_NAMES)}"
        say(text)
        if empty := sorted(
            names[index] if names else str(index) for index in every_class.keys() - counts.keys()
        ):
            reason = f"which have too few {unit}s or groups to be in every list"
            say(f"{name} has no {unit} of {counted(len(empty), 'class')}, {reason}: {first_names(empty)}")
        classes = {names[index] if names else str(index): count for index, count in sorted(counts.items())}
        facts[name] = {"videos": len(part), "groups": groups, "classes": classes, "numbers": numbers}
    return facts


def encode(
    sources: list[str] = argument("LIST|FOLDER…", "Lists or folders of videos, or their URLs."),
    output: Path = option("--output -o DIR", "Folder for the files.", ...),
    data: str | None = ROOT,
    short_side: int = option(
        "--short-side PIXELS", "Maximum; smaller videos keep their size.", 256, min=16
    ),  # heuristic, for crops of 224
    codec: Literal["h264", "mjpeg"] = option(
        "--codec", "mjpeg: files of 8 times the size that are read 3 times as fast.", "h264"
    ),
    gop: int | None = option("--gop N", "Frames from keyframe to keyframe of h264 [12].", min=1),
    crf: int | None = option("--crf N", "Quality of h264 [18]; 0 is lossless.", min=0, max=51),
    quality: int | None = option("--quality N", "Quality of mjpeg [90]; 95 is best.", min=1, max=95),
    timeout: float = option("--timeout SECONDS", "Maximum time per video.", 3600, min=1),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
) -> None:
    """Re-encode videos for faster training; prints the new lists and folder.

    Worth it for large frames and distant keyframes; small files can grow. Use --codec mjpeg if training
    waits for videos: see "Is my GPU waiting?" in the documentation.

    Example: everest prepare encode train.csv test.csv --output small
    """
    from everest.lists.inputs import read_tables
    from everest.prepare.encode import EncodeSettings, encode_videos
    from everest.video.writer import H264, Mjpeg

    of_other = {"h264": {"--quality": quality}, "mjpeg": {"--gop": gop, "--crf": crf}}[codec]
    for name, value in of_other.items():
        if value is not None:
            raise RecipeError(f"{name}: has no effect with --codec {codec}; leave it out")
    # The defaults of both codecs have about the same PSNR: on ten real clips 39.9 and 39.2 dB, of luma 41.4
    # and 41.7.
    encoder = {
        "h264": H264(gop=gop or 12, crf=18 if crf is None else crf),
        "mjpeg": Mjpeg(quality=quality or 90),
    }[codec]
    with Display(quiet=quiet) as display:
        document = encode_videos(
            list(read_tables(sources, data)),
            output,
            EncodeSettings(short_side=short_side, codec=encoder),
            workers=num_cores(),
            timeout=timeout,
            overwrite=overwrite,
            report=display.report,
        )
    print_result(document, "\n".join(document["lists"] or [str(output)]), as_json=as_json)
    if not quiet:
        size = document["bytes"]
        say(
            f"{document['videos']} videos, {document['encoded']} encoded now, "
            f"{len(document['failed'])} failed; "
            f"{size['before'] / 1e6:.1f} MB became {size['after'] / 1e6:.1f} MB"
        )
    exit_if_failed(document["failed"])


def shard(
    source: str = argument("LIST", "A list or folder of videos, or its URL."),
    output: Path = option("--output -o DIR", "Folder for the shards.", ...),
    data: str | None = ROOT,
    count: int = option("--count N", "Largest number of videos in a shard.", 10000, min=1),
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
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
    with Display(quiet=quiet) as display:
        document = write_shards(
            videos, output, max_bytes=MOST_BYTES, max_count=count, overwrite=overwrite, report=display.report
        )
    if not quiet:
        say(f"{document['videos']} videos, shards: {document['shards']}, {document['bytes'] / 1e6:.1f} MB")
    print_result(document, document["index"], as_json=as_json)


def tokens(
    recipe: str = o.RECIPE,
    output: Path = option("--output -o DIR", "Folder for the tokens.", ...),
    variants: int = option(
        "--variants N", "Clips per video; later epochs repeat them.", 4, min=1, max=10_000
    ),
    data: str | None = o.DATA_ROOT,
    overrides: list[str] | None = o.OVERRIDES,
    batch: int = option("--batch N", "Videos in one forward pass.", 8, min=1),
    gpus: str = o.ONE_GPU,
    overwrite: bool = o.OVERWRITE,
    as_json: bool = o.AS_JSON,
    quiet: bool = o.QUIET,
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
    with Display(quiet=quiet) as display:
        document = write_tokens(
            settings,
            output,
            variants=variants,
            batch=batch,
            cpu=is_on_cpu(gpus),
            overwrite=overwrite,
            report=display.report,
        )
    if not quiet:
        clips, skipped = document["videos"] * document["variants"], len(document["bad"])
        say(f"{clips} clips, {document['bytes'] / 1e6:.1f} MB; {skipped} videos skipped")
    print_result(document, output, as_json=as_json)


# In the order of help.
for name, command, line in (
    ("index", index, "Write lists from the annotations of a data set."),
    ("annotations", prepare_windows.convert_annotations, "Convert annotations of times; label windows."),
    ("split", split, "Divide videos into train, val and test lists."),
    ("windows", prepare_windows.windows, "List windows of long videos."),
    ("check", prepare_check.check, "Decode every video, verify labels, find copies."),
    ("encode", encode, "Re-encode videos so that training reads them faster."),
    ("stats", prepare_check.stats, "Measure colors, lengths, class balance and motion."),
    ("shard", shard, "Pack the videos of a list into tar files."),
    ("tokens", tokens, "Cache the outputs of LVMAE's tokenizer."),
):
    app.command(name, short_help=line)(command)
