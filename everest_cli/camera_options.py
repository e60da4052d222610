"""Options about a camera that moves and about cuts, of commands that measure change."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class AlignChoice(StrEnum):
    """Motions of the camera that can be removed."""

    none = "none"
    shift = "shift"
    affine = "affine"


class CutsChoice(StrEnum):
    """Ways to measure change at a cut."""

    ignore = "ignore"
    detect = "detect"


Align = Annotated[
    AlignChoice | None,
    typer.Option("--align", help="Remove this motion of the camera before change is measured [none]."),
]
Cuts = Annotated[
    CutsChoice | None,
    typer.Option("--cuts", help="detect: the first slice of a scene counts as that of a clip [ignore]."),
]
SliceCap = Annotated[
    float | None,
    typer.Option("--slice-cap", metavar="SHARE", help="Largest share of the kept tokens in one slice [1]."),
]
