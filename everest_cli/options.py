"""Options that commands share, and what they do to a recipe and an output folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest_cli.output import say

if TYPE_CHECKING:
    from torch import Tensor

    from everest.data.datasets import Clip
    from everest.run_folder import RunFolder
    from everest.settings import Recipe
    from everest.training import Training


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"


class Precision(StrEnum):
    """Of the matrix products; weights, selection and loss are float32 always."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Resume(StrEnum):
    """What to do with a run of the same recipe in --output."""

    auto = "auto"
    never = "never"


class Which(StrEnum):
    """Which weights of a run folder."""

    newest = "newest"
    best = "best"


RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", metavar="R", help="A shipped recipe's name, or a YAML file.")
]
DataRoot = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Where the lists and videos are (data.root).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Run folder [runs/COMMAND/RECIPE-TIME].")
]
ResumeMode = Annotated[
    Resume, typer.Option("--resume", help="Continue a run of the same recipe in --output, or refuse to.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --output holds.")]
Gpus = Annotated[Device, typer.Option("--gpus", help="The device to use.")]
PrecisionMode = Annotated[Precision | None, typer.Option("--precision", help="Override train.precision.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Override train.seed.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, run one pass, estimate time and memory, write nothing."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def read_recipe(
    name: str,
    *,
    data: Path | None = None,
    overrides: list[str] | None = None,
    precision: Precision | None = None,
    seed: int | None = None,
) -> Recipe:
    """The recipe with what the options change in it.

    `data.root` is made absolute: a run does not depend on where it was started.
    """
    from everest.recipe import load_recipe

    changes = list(overrides or [])
    if data is not None:
        changes.append(f"data.root={json.dumps(str(data))}")
    if precision is not None:
        changes.append(f"train.precision={precision.value}")
    if seed is not None:
        changes.append(f"train.seed={seed}")
    recipe = load_recipe(name, overrides=changes, notify=say)
    root = json.dumps(str(Path(recipe.data.root).resolve()))  # quoted: overrides are YAML
    return load_recipe(name, overrides=[*changes, f"data.root={root}"])


def choose_output(
    command: str, recipe: Recipe, output: Path | None, *, resume: Resume, overwrite: bool
) -> tuple[RunFolder, bool]:
    """The run folder, and whether it continues the run that is there. Nothing is written yet."""
    from everest.recipe import dump_recipe
    from everest.run_folder import RunFolder, check_output, default_folder

    path = output or default_folder(command, recipe.name)
    resumed = check_output(path, dump_recipe(recipe), resume=resume is Resume.auto, overwrite=overwrite)
    return RunFolder(path), resumed


def start(run: RunFolder, recipe: Recipe, *, resumed: bool) -> None:
    """Write the run's first files, unless it goes on from what is there."""
    from everest.recipe import dump_recipe

    if not resumed:
        run.start(dump_recipe(recipe))


def print_recipe(recipe: Recipe) -> None:
    """The resolved recipe, as --print-config shows it."""
    from everest.recipe import dump_recipe

    typer.echo(dump_recipe(recipe), nl=False)


def print_trial(training: Training, loss_of: Callable[[Clip], Tensor]) -> None:
    """Run one pass and print what it says of the whole run, as --dry-run does."""
    from everest.setup import try_one_pass

    told = try_one_pass(training, loss_of)
    told["peak_memory"] = f"{told.pop('memory_bytes') / 2**30:.2f} GiB"
    for name, value in told.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")
