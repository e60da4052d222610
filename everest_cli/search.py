"""`everest search`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o
from everest_cli.option_groups import WriterOptions, grouped
from everest_cli.output import print_json


@grouped
def search(
    queries: Annotated[
        list[str],
        typer.Argument(metavar="QUERY…", help="A video, a moment (video.mp4@12.5), or a name in F."),
    ],
    features: Annotated[
        Path, typer.Option("--features", metavar="F", help="A .safetensors file of everest extract.")
    ],
    writer: WriterOptions,
    top: Annotated[
        int, typer.Option("--top", "-k", metavar="K", min=1, help="Number of results for each query.")
    ] = 10,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="F", help="Also write a page with the clips of the results."),
    ] = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Find the videos or moments most similar to an example, by an encoder's features.

    A video that is not in F needs --checkpoint: the weights that wrote F.

    Example: everest search video.mp4@12.5 --features windows.safetensors --page results.html
    """
    from everest.search.feature_file import read_feature_file
    from everest.search.neighbors import nearest, read_query, to_dict
    from everest.system.files import check_new_file, refuse_inputs

    file = read_feature_file(features)
    if page is not None:
        refuse_inputs(page, [features, *map(Path, queries), *map(Path, file.files)], option="--page")
        check_new_file(page, option="--page", overwrite=overwrite)
    model = writer.open(file)
    found = [read_query(text, file, model) for text in queries]
    results = [(query, nearest(file, query, top=top)) for query in found]
    if page is not None:
        from everest.figures.clips import clip_card
        from everest.figures.drawing import write_page

        cards = [
            {
                "name": query.name,
                "clip": clip_card(query.sample),
                "neighbors": [
                    clip_card(file.sample(each.row))
                    | {"similarity": f"{each.similarity:.3f}", "name": file.name(each.row)}
                    for each in neighbors
                ],
            }
            for query, neighbors in results
        ]
        write_page(page, "search", "page.html", features=file.path, rows=len(file.units), queries=cards)
    if as_json:
        print_json([to_dict(query, neighbors, file) for query, neighbors in results])
    else:
        for query, neighbors in results:
            typer.echo(query.name)
            for neighbor in neighbors:
                typer.echo(f"  {neighbor.similarity:6.3f}  {file.name(neighbor.row)}")
