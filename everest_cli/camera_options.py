"""Options about a camera that moves and about cuts, of commands that measure change."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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
