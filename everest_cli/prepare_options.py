"""Options that the commands of `everest prepare` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def local_path(text: str) -> Path:
    """A path on this machine, which is what these commands read.

    Raises:
        RecipeError: a URL.
    """
    from everest.errors import RecipeError
    from everest.system.storage import LOCAL, is_url

    if is_url(text) and not text.startswith(LOCAL):
        raise RecipeError(
            f"{text}: is a URL; this command reads files of this machine only (encode and shard read URLs)"
        )
    return Path(text.removeprefix(LOCAL))


ClassesFile = Annotated[
    Path | None,
    typer.Option("--classes", parser=local_path, metavar="FILE", help="Class names, one a line, in order."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--data", parser=local_path, metavar="DIR", help="What paths in lists are relative to [their folder]."
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Processes [as cores].")]
Limit = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.01, help="A video that takes longer is bad.")
]
