"""`everest recipes`: suggest, list and show recipes. Listing needs no torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from everest.config.heads import TaskName
from everest.system.files import check_new_file
from everest.system.storage import parse_location
from everest_cli import options as o
from everest_cli.options import argument, option, refuse
from everest_cli.output import Display, Quiet, hint, print_json, print_result, print_table

if TYPE_CHECKING:
    from everest_workflows.suggest.folder import SuggestRequest

EqualCost = Literal["gmacs", "hours"]  # everest_workflows.sweep.equal_cost.Cost
Device = Literal["cpu", "8GB", "24GB", "80GB"]  # the names of everest_workflows.suggest.rules.DEVICE_VALUES
PRETRAIN_FILE: Final = "pretrain.csv"  # read if neither --pretrain nor a training list is given

app = typer.Typer(help="Recipes: suggest, list, show.", no_args_is_help=True)


@app.command(epilog="Example: everest recipes suggest /data/mice -o mice.yaml")
def suggest(
    data: str = argument("DATA", "Folder of class folders, or of lists (train.csv, …)."),
    output: Path = option("--output -o FILE", "The recipe to write.", ...),
    train: str | None = option("--train LIST", "Training list [train.csv]."),
    val: str | None = option("--val LIST", "Validation list [val.csv]."),
    test: str | None = option("--test LIST", "Test list [test.csv]."),
    pretrain: str | None = option(
        "--pretrain SOURCE", "Folder or list of videos to pre-train on first [pretrain.csv]."
    ),
    init: str = option(*o.INIT, "none"),
    group: str | None = option("--group G", "Groups of the videos; see `everest prepare split`."),
    unlabeled: bool = option("--unlabeled", "Pre-train only; DATA needs no classes.", False),
    task: TaskName | None = o.TASK,
    device: Device | None = option("--device", "CPU or GPU memory [this machine's]."),
    hours: float | None = option("--hours H", "Maximum hours per stage.", min=0.01, max=10_000),
    overwrite: bool = option("--overwrite", "Replace the file and its lists.", False),
    as_json: bool = o.AS_JSON,
) -> None:
    """Write a recipe for a data set and a device, with the reason for each value; prints its path.

    Class folders without lists are split first, into FILE-lists.
    """
    from everest_workflows.suggest.folder import SuggestRequest, suggest_for_folder
    from everest_workflows.suggest.rules import find_device

    check_new_file(output, overwrite=overwrite)
    here = find_device()
    is_here = device in (None, "cpu", here)
    no_speed = hours is not None and not is_here
    refuse(
        {
            "--task: has no effect with --unlabeled": unlabeled and task,
            f"--hours: cannot measure the speed of --device {device} on this machine; leave it out": no_speed,
        }
    )
    if pretrain is None and train is None and (parse_location(data) / PRETRAIN_FILE).is_file():
        pretrain = PRETRAIN_FILE
    lists = {"train": train, "val": val, "test": test}
    request = SuggestRequest(
        data=data,
        output=output,
        lists={key: name for key, name in lists.items() if name is not None},
        device=device or here,
        pretrain=pretrain,
        unlabeled=unlabeled,
        task=task,
        group=group,
        init=None if init == "none" else init,
        hours=hours,
        measured=is_here and not (Quiet.is_on and hours is None and not as_json),
        overwrite=overwrite,
    )
    suggestion, lines = suggest_for_folder(request, emit=Display().emit)
    commands = _list_next_commands(request, has_test=bool(suggestion.section.get("test")))
    hint(*lines, *map(str, suggestion.times), "\n  ".join(["next:", *commands]))
    document = {"recipe": str(output), "stages": [time._asdict() for time in suggestion.times]}
    print_result({**document, "next": commands}, output, as_json=as_json)


def _list_next_commands(request: SuggestRequest, *, has_test: bool) -> list[str]:
    """Return the commands that train with a suggested recipe and evaluate the model."""
    run, file = f"runs/{shlex.quote(request.output.stem)}", shlex.quote(str(request.output))
    start = "none" if request.init is None else shlex.quote(request.init)
    commands = []
    if request.unlabeled or request.pretrain is not None:
        encoder = run if request.unlabeled else f"{run}-pretrain"
        from_init = "" if request.init is None else f" --init {start}"
        commands, start = [f"everest pretrain --recipe {file}{from_init} --output {encoder}"], encoder
    if not request.unlabeled:
        commands.append(f"everest finetune --recipe {file} --init {start} --output {run}")
        commands += [f"everest eval --checkpoint {run}"] if has_test else []
    return commands


@app.command("list", epilog="Example: everest recipes list --json")
def list_recipes(as_json: bool = option("--json", "One JSON list of names and summaries.", False)) -> None:
    """Name and summary of every shipped recipe."""
    from rich.table import Column

    from everest.config.recipe_files import shipped_names, shipped_recipe

    rows = [{"name": name, "summary": shipped_recipe(name).summary} for name in shipped_names()]
    if as_json:
        print_json(rows)
    else:
        columns = (Column("recipe", no_wrap=True), "summary")
        print_table(columns, [(row["name"], row["summary"]) for row in rows], box=None)


@app.command(epilog="Example: everest recipes show ucf101 --set data.frames=24 --resolved")
def show(
    name: str = argument("NAME", "A shipped recipe, or the path of a recipe or a sweep file."),
    overrides: list[str] | None = o.OVERRIDES,
    resolved: bool = option("--resolved", "All settings, with base and defaults filled in.", False),
    equal: EqualCost | None = option(
        "--equal", "Of a sweep file: with the epochs at which all variants cost the same."
    ),
) -> None:
    """Check a recipe or all variants of a sweep file; print it as written, or with all settings.

    --set changes the settings that --resolved and --equal print. All problems are listed. The hours of
    --equal are those of training steps, measured on this machine.
    """
    from everest.config.recipe_files import find_recipe
    from everest_workflows.sweep.request import is_sweep_file, read_request

    file = find_recipe(name)
    refuse(
        {
            "--equal: give a sweep file, and leave out --resolved": equal
            and (resolved or not is_sweep_file(file))
        }
    )
    if equal is not None:
        from everest.config.yaml import write_yaml
        from everest_workflows.sweep.equal_cost import with_equal_cost

        text = write_yaml(with_equal_cost(read_request(name, overrides=overrides or ()), equal).dump())
        typer.echo(text, nl=False)
        return
    if is_sweep_file(file):
        from everest.config.recipe import recipe_values
        from everest.config.yaml import write_yaml
        from everest_workflows.sweep.sweep_jobs import resolve_variants

        variants = resolve_variants(read_request(name, overrides=overrides or ()), data=None)
        text = write_yaml({variant: recipe_values(recipe) for variant, recipe in variants.items()})
    else:
        from everest.config.recipe import dump_recipe, load_recipe

        text = dump_recipe(load_recipe(file, overrides=overrides or ()))
    typer.echo(text if resolved else file.text, nl=False)
