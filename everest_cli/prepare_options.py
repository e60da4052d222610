"""Options that the commands of `everest prepare` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ClassesFile = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="Class names, one a line, in order.")
]
Root = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="What paths in lists are relative to [their folder]."),
]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Processes [as cores].")]
Limit = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.01, help="A video that takes longer is bad.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
