"""The videos, the model and the camera options of commands that measure change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Videos = Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Videos, or folders of videos.")]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", "-c", metavar="C", help="Model whose embedding measures change [raw pixels]."
    ),
]
Align = Annotated[
    Literal["none", "shift", "affine"] | None,
    typer.Option("--align", help="Remove this motion of the camera before change is measured [none]."),
]
Cuts = Annotated[
    Literal["ignore", "detect"] | None,
    typer.Option("--cuts", help="detect: the first slice of a scene counts as that of a clip [ignore]."),
]
SliceCap = Annotated[
    float | None,
    typer.Option("--slice-cap", metavar="SHARE", help="Largest share of the kept tokens in one slice [1]."),
]
