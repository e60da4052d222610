"""`everest recipes`: list, show, copy and validate recipes. Listing and copying need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.output import print_json, print_rich
from everest_cli.recipes_suggest import suggest

TEMPLATES: Final = ("custom", "small")  # recipes for any videos

app = typer.Typer(help="Recipes: list, show, copy, validate, suggest.", no_args_is_help=True)
app.command(epilog="Example: everest recipes suggest /data/mice -o mice.yaml")(suggest)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, or the path of a YAML file.")]


@app.command("list", epilog="Example: everest recipes list --json")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list of names and summaries.")] = False,
    quiet: o.OnlyNames = False,
) -> None:
    """Name and summary of every shipped recipe."""
    from everest.config.recipe_files import shipped_names, shipped_recipe

    rows = [{"name": name, "summary": shipped_recipe(name).summary} for name in shipped_names()]
    if as_json:
        print_json(rows)
    elif quiet:
        typer.echo("\n".join(row["name"] for row in rows))
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("recipe", "summary", box=None)
    for row in rows:
        table.add_row(Text(row["name"], no_wrap=True), Text(row["summary"]))
    print_rich(table)


@app.command(epilog="Example: everest recipes show ucf101 --resolved")
def show(
    name: Name,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All settings, with base and defaults filled in.")
    ] = False,
) -> None:
    """Print a recipe as written, or resolved."""
    if resolved:
        from everest.config.recipe import dump_recipe, load_recipe

        typer.echo(dump_recipe(load_recipe(name)), nl=False)
    else:
        from everest.config.recipe_files import find_recipe

        typer.echo(find_recipe(name).text, nl=False)


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
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no folder {path.parent}") from error
    except OSError as error:
        raise write_error(path, error) from error
    if recipe.name in TEMPLATES:
        typer.echo("`everest recipes suggest VIDEOS` fits a recipe to your videos and your machine", err=True)
    typer.echo(path)


@app.command(epilog="Example: everest recipes validate my.yaml --set data.frames=24")
def validate(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="YAML files, of recipes or sweeps, or shipped recipes."),
    ],
    overrides: o.Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the problems.")] = False,
) -> None:
    """Check recipes and sweep files: 'ok' for each good one, all problems of the others."""
    from everest.config.recipe_files import find_recipe, with_bases
    from everest.sweep.request import is_sweep, read_request

    problems = []
    for path in paths:
        try:
            file = find_recipe(path)
            with_bases(file)  # refuses files that are no recipes before torch is imported
            notify = lambda notice, path=path: typer.echo(f"{path}: {notice}", err=True)  # noqa: E731
            if is_sweep(file):
                from everest.sweep.plan import resolve_arms

                resolve_arms(read_request(path, overrides=overrides or ()), data=None, notify=notify)
            else:
                from everest.config.recipe import load_recipe

                load_recipe(path, overrides=overrides or (), notify=notify)
        except RecipeError as error:
            problems.append(str(error))
        else:
            if not quiet:
                typer.echo(f"{path}: ok")
    if problems:
        raise RecipeError("\n".join(problems))
