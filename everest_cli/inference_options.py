"""Options of the commands that run a checkpoint on videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everest_cli import options as o

CHECKPOINT_HELP = "Run folder, .safetensors file or hf:OWNER/NAME."

Videos = Annotated[
    list[Path],
    typer.Argument(metavar="VIDEO…", help="Videos, folders of videos, or lists (.csv, .tsv, .txt)."),
]
Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", "-c", metavar="C", help=CHECKPOINT_HELP),
]
WhichWeights = Annotated[o.Which, typer.Option("--which", help="Of a run folder: newest or best weights.")]
ListRoot = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Where the paths of a list begin [the list's folder]."),
]
HowSeen = Annotated[
    str | None,
    typer.Option("--recipe", "-r", metavar="R", help="Says size, stride and views of clips [the run's]."),
]
Keep = Annotated[
    float | None,
    typer.Option("--keep", metavar="SHARE", help="Share of the tokens that is encoded [as trained]."),
]
Clips = Annotated[int | None, typer.Option("--clips", min=1, help="Clips of a video [as in the run's test].")]
Crops = Annotated[int | None, typer.Option("--crops", min=1, help="Crops of a clip [as in the run's test].")]
Batch = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Videos, or windows, in one pass.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read videos.")]
OnCpu = Annotated[bool, typer.Option("--cpu", help="Compute on the CPU though there is a GPU.")]
