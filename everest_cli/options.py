"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from everest_cli.option_values import Precision, Task, Tracker, Which, local_path


def _complete_recipe(incomplete: str) -> list[str]:
    """The shipped recipes whose names begin so, for completion in a shell."""
    from everest.config.recipe_files import shipped_names

    return [name for name in shipped_names() if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="R",
        help="A shipped recipe, a YAML file, or auto: suggested for --data.",
        autocompletion=_complete_recipe,
    ),
]
DataRoot = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Folder or URL of lists and videos (data.root).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Run folder [runs/COMMAND/RECIPE-TIME].")
]
ResumeMode = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|DIR",
        help="Resume the run in --output (auto), in DIR, or never.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the contents of --output.")]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Gpus = Annotated[
    str,
    typer.Option("--gpus", metavar="auto|N|cpu|mps", help="All visible GPUs (auto), N GPUs, the CPU or MPS."),
]
OneGpu = Annotated[
    str,
    typer.Option("--gpus", metavar="auto|1|cpu|mps", help="A GPU if there is one (auto), or the CPU."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="Number of processes with --gpus cpu.")
]
TrackerName = Annotated[
    Tracker, typer.Option("--tracker", help="Log curves and images to TensorBoard or W&B (offline).")
]
OverfitOneBatch = Annotated[
    bool,
    typer.Option("--overfit-one-batch", help="Overfit the first batch, to check that the model can learn."),
]
PrecisionMode = Annotated[Precision | None, typer.Option("--precision", help="Override train.precision.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Override train.seed.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings and stop.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, try two passes, estimate time and memory; write nothing."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="F", help="Write to this file and print its name.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


FileFps = Annotated[
    float | None,
    typer.Option(
        "--fps", metavar="N", min=0.001, max=10_000, help="Count frames at N per second [the file's rate]."
    ),
]
CHECKPOINT_HELP = "Run folder, .safetensors file or hf:OWNER/NAME."

Videos = Annotated[
    list[Path],
    typer.Argument(metavar="VIDEO…", help="Videos, folders of videos, or lists (.csv, .tsv, .txt)."),
]
VideosOrFolders = Annotated[
    list[Path], typer.Argument(metavar="VIDEO…", help="Videos, or folders of videos.")
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", metavar="C", help=CHECKPOINT_HELP)]
Writer = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", "-c", metavar="C", help="Weights that made the features; needed for new videos."
    ),
]
WhichWeights = Annotated[
    Which | None,
    typer.Option("--which", help="Weights of a run folder [best on data.val if there are any, else newest]."),
]
ListRoot = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder that paths in a list are relative to [the list's]."),
]
HowSeen = Annotated[
    str | None,
    typer.Option("--recipe", "-r", metavar="R", help="Recipe for clip size, stride and views [the run's]."),
]
OtherRecipe = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="R", help="Recipe to use instead of the run's.")
]
Keep = Annotated[
    float | None,
    typer.Option("--keep", metavar="SHARE", help="Keep ratio: share of tokens to encode [as in training]."),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", "-c", metavar="C", help="Model whose embedding measures change [raw pixels]."
    ),
]
# Of a camera that moves, and of cuts.
Align = Annotated[
    Literal["none", "shift", "affine"] | None,
    typer.Option("--align", help="Remove this camera motion before measuring change [none]."),
]
Cuts = Annotated[
    Literal["ignore", "detect"] | None,
    typer.Option("--cuts", help="detect: treat the start of a scene as the start of a clip [ignore]."),
]
Evaluation = Annotated[
    Path | None,
    typer.Option("--evaluation", metavar="F", help="Output of everest eval --json, for the model card."),
]
Views = Annotated[
    str | None,
    typer.Option(
        "--views", metavar="CLIPSxCROPS", help="Views of a video, such as 1x1 [as in the run's evaluation]."
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", min=1, metavar="N", help="Videos or windows in one forward pass.")
]


ClassesFile = Annotated[
    Path | None,
    typer.Option("--classes", parser=local_path, metavar="FILE", help="Class names in order, one per line."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=local_path,
        metavar="DIR",
        help="Folder that paths in lists are relative to [the list's].",
    ),
]
TaskName = Annotated[
    Task | None,
    typer.Option("--task", help="One class, classes joined by |, or a number per video [by the labels]."),
]
ListsFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the lists [the videos' folder]."),
]
