"""`everest prepare index`: lists from archives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.option_values import local_path
from everest_cli.output import print_json, say


def index(
    folder: Annotated[
        Path, typer.Argument(parser=local_path, metavar="FOLDER", help="The data set: data.root of a recipe.")
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            parser=local_path,
            metavar="DIR",
            help="Folder of the annotations, if not below FOLDER.",
        ),
    ] = None,
    split: Annotated[
        int, typer.Option("--split", min=1, max=3, help="Official split of UCF101 or HMDB51.")
    ] = 1,
    output: o.ListsFolder = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Write lists from the annotations of a data set; prints the lines for a recipe.

    Example: everest prepare index /data/ucf101
    """
    from everest.prepare.index import index_folder, write_index
    from everest.system.text import counted

    result = index_folder(folder, annotations=annotations, split=split)
    document = write_index(result, output or folder, overwrite=overwrite)
    lists = ", ".join(f"{name} {count}" for name, count in document["lists"].items())
    classes = f"; {counted(len(result.class_names), 'class')}" if result.class_names else ""
    say(f"{document['layout']}: {lists}{classes}")
    if result.notice is not None:
        say(result.notice)
    if document["missing"] or document["extra"]:
        missing = counted(document["missing"], "video")
        say(f"{missing} missing, {document['extra']} in no list: {document['written'][-1]}")
    if as_json:
        print_json(document)
    else:
        from everest.config.yaml import write_yaml

        typer.echo(write_yaml({"data": document["data"]}, width=1000), nl=False)
