"""`everest recipes`: list, show and copy recipes. Listing and copying need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.output import print_json, print_rich, say
from everest_cli.recipes_suggest import suggest

TEMPLATES: Final = ("custom", "small")  # recipes for any videos

app = typer.Typer(help="Recipes: list, show, copy, suggest.", no_args_is_help=True)
app.command(epilog="Example: everest recipes suggest /data/mice -o mice.yaml")(suggest)


@app.command("list", epilog="Example: everest recipes list --json")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list of names and summaries.")] = False,
) -> None:
    """Name and summary of every shipped recipe."""
    from everest.config.recipe_files import shipped_names, shipped_recipe

    rows = [{"name": name, "summary": shipped_recipe(name).summary} for name in shipped_names()]
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("recipe", "summary", box=None)
    for row in rows:
        table.add_row(Text(row["name"], no_wrap=True), Text(row["summary"]))
    print_rich(table)


@app.command(epilog="Example: everest recipes show ucf101 --set data.frames=24 --resolved")
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A shipped recipe, or the path of a recipe or a sweep file."),
    ],
    overrides: o.Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All settings, with base and defaults filled in.")
    ] = False,
) -> None:
    """Check a recipe or all arms of a sweep file; print it as written, or with all settings.

    --set changes the settings that --resolved prints. All problems are listed.
    """
    from everest.config.recipe_files import find_recipe, with_bases
    from everest.sweep.request import is_sweep, read_request

    file = find_recipe(name)
    with_bases(file)  # refuses files that are no recipes before torch is imported
    if is_sweep(file):
        from everest.config.recipe import recipe_values
        from everest.config.yaml import write_yaml
        from everest.sweep.plan import resolve_arms

        arms = resolve_arms(read_request(name, overrides=overrides or ()), data=None, notify=say)
        text = write_yaml({arm: recipe_values(recipe) for arm, recipe in arms.items()})
    else:
        from everest.config.recipe import dump_recipe, load_recipe

        text = dump_recipe(load_recipe(file, overrides=overrides or (), notify=say))
    typer.echo(text if resolved else file.text, nl=False)


@app.command(epilog="Example: everest recipes copy custom my.yaml")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="A file or folder.", show_default="this folder")
    ] = Path(),
) -> None:
    """Copy a recipe to a file of your own, and print where it is."""
    from everest.config.recipe_files import shipped_recipe
    from everest.system.files import write_error

    recipe = shipped_recipe(name)
    path = destination / f"{recipe.name}.yaml" if destination.is_dir() else destination
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(recipe.text)
    except FileExistsError as error:
        raise RecipeError(f"{path}: exists already; name another file") from error
    except OSError as error:
        raise write_error(path, error) from error
    if recipe.name in TEMPLATES:
        typer.echo("`everest recipes suggest VIDEOS` fits a recipe to your videos and your machine", err=True)
    typer.echo(path)
