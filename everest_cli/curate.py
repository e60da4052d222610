"""`everest curate`: near-duplicates, and what to label next, by features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.option_groups import WriterOptions, grouped
from everest_cli.output import print_json
from everest_cli.search import FeaturesFile

app = typer.Typer(help="Find near-duplicates; choose what to label next.", no_args_is_help=True)

NewList = Annotated[Path, typer.Option("--output", "-o", metavar="LIST", help="List to write.")]


@app.command(short_help="Find near-duplicates that differ in their bytes.")
def duplicates(
    features: FeaturesFile,
    output: NewList,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="T", help="Cosine similarity of duplicates [0.985]."),
    ] = None,
    kept: Annotated[
        Path | None, typer.Option("--kept", metavar="LIST", help="Also list all rows but the copies.")
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="Also compare windows of the same video.")] = False,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Find groups of videos or windows whose features are almost equal; list them with their similarity.

    Files with the same bytes or frames are found by everest prepare check, without features.

    Example: everest curate duplicates --features features.safetensors -o duplicates.csv
    """
    from everest.search.duplicates import THRESHOLD, find_duplicates, to_dict, write_groups, write_kept
    from everest.search.feature_file import read_feature_file
    from everest.system.files import check_new_file, refuse_inputs, refuse_same_file

    refuse_same_file(output, kept, options="--output and --kept")
    file = read_feature_file(features)
    for option, path in (("--output", output), ("--kept", kept)):
        if path is not None:
            refuse_inputs(path, [features, *file.files], option=option)
            check_new_file(path, option=option, overwrite=overwrite)
    groups = find_duplicates(file, THRESHOLD if threshold is None else threshold, own=own)
    write_groups(output, groups, file)
    if kept is not None:
        write_kept(kept, groups, file)
    documents = [to_dict(group, file) for group in groups]
    if as_json:
        print_json(documents)
        return
    for document in documents:
        typer.echo(document["kept"])
        for copy in document["copies"]:
            typer.echo(f"  {copy['similarity']:.4f}  {copy['name']}")
    copies = sum(len(group.copies) for group in groups)
    typer.echo(f"{len(groups)} groups with {copies} copies among {len(file)} rows: {output}")


@app.command("select", short_help="Choose videos or windows to label next.")
@grouped
def select(
    features: FeaturesFile,
    output: NewList,
    writer: WriterOptions,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of rows to choose.")],
    labeled: Annotated[
        Path | None, typer.Option("--labeled", metavar="LIST", help="Rows or times that have labels already.")
    ] = None,
    uncertain: Annotated[
        bool, typer.Option("--uncertain", help="Among the rows that the classifier is least sure of.")
    ] = False,
    overwrite: o.OverwriteFile = False,
) -> None:
    """Choose rows that differ from each other, and write them as a list and as a table to fill in.

    The table is next to LIST, with the columns video, start, end and an empty label.

    Example: everest curate select --features windows.safetensors --count 50 -o next.csv
    """
    from everest.errors import RecipeError
    from everest.lists.reading import read_samples
    from everest.lists.writing import write_list
    from everest.search.feature_file import read_feature_file
    from everest.search.select import label_sheet, labeled_rows, select_rows
    from everest.system.files import check_new_file, read_rows, refuse_inputs, write_table

    if uncertain != (writer.checkpoint is not None):
        raise RecipeError("--uncertain and --checkpoint go together: give both or neither")
    file = read_feature_file(features)
    inputs = [features, *file.files, *([] if labeled is None else [labeled])]
    refuse_inputs(output, inputs, option="--output")
    check_new_file(output, option="--output", overwrite=overwrite)
    table = output.with_suffix(".labels.csv")
    was_killed = table.exists() and not output.exists()  # or a person has filled the table: see below
    refuse_inputs(table, inputs, option="--output")
    check_new_file(table, option="--output", overwrite=overwrite or was_killed)
    known = (
        ()
        if labeled is None
        else read_samples(labeled, root=labeled.parent, labeled=False, may_miss=True).samples
    )
    model = writer.open(views=None if file.window is None else 1)
    chosen = select_rows(file, count, labeled=labeled_rows(file, known), model=model)
    samples = [file.listed(row) for row in chosen]
    sheet = label_sheet(samples)
    if was_killed and read_rows(table) != sheet:
        check_new_file(table, option="--output", overwrite=overwrite)
    write_table(table, sheet)
    write_list(output, samples, root=output.parent.absolute())
    typer.echo(output)
    typer.echo(table)
