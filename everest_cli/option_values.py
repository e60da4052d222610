"""The values of options: choices, recipes, tasks, keep ratios, sizes and paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everest.errors import RecipeError
from everest_cli.output import say

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.suggest.rules import Purpose

# The choices of options. typer shows them, and refuses any other value.
Precision = Literal["auto", "bf16", "fp16", "fp32"]  # of matrix products; all else is float32
Task = Literal["single-label", "multi-label", "regression"]
Tracker = Literal["none", "tensorboard", "wandb"]  # metrics go there in addition to metrics.jsonl
Which = Literal["newest", "best"]  # weights of a run folder


def read_recipe(
    name: str,
    *,
    data: str | None = None,
    overrides: list[str] | None = None,
    precision: Precision | None = None,
    seed: int | None = None,
    imports: bool = True,
    cpu: bool = False,
    purpose: Purpose = "pretrain",
) -> Recipe:
    """Load a recipe with the changes of the options; see everest.config.recipe.recipe_for_run.

    Args:
        cpu, purpose: of the recipe `auto`; see everest.suggest.suggestion.
    """
    from everest.config.recipe_files import AUTO, find_recipe, with_bases

    if name == AUTO:
        from everest.suggest.suggestion import auto_recipe

        source = auto_recipe(data, purpose=purpose, overrides=overrides or (), cpu=cpu)
    else:
        source = find_recipe(name)
        with_bases(source)  # refuses files that are no recipes before torch is imported
    from everest.config.recipe import recipe_for_run

    return recipe_for_run(
        source,
        data=data,
        overrides=overrides or (),
        precision=precision,
        seed=seed,
        notify=say,
        imports=imports,
    )


def read_shares(text: str) -> tuple[float, ...]:
    """Parse the keep ratios of --keep, such as `0.5,0.25`.

    Raises:
        RecipeError: a ratio is not a number above 0 and at most 1, or is given twice.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise RecipeError(f"--keep {text}: give keep ratios above 0 and at most 1, such as 0.5,0.25")
    if len(set(shares)) < len(shares):
        raise RecipeError(f"--keep {text}: a ratio is given twice")
    return shares


def read_size(text: str) -> int | tuple[int, int]:
    """Parse the pixels of --size: `224` for a square frame, `64x96` for height and width.

    Raises:
        RecipeError: the text is neither, or a side is not from 1 to LONGEST_SIDE.
    """
    from everest.config.values import LONGEST_SIDE

    is_size = re.fullmatch(r"\d{1,9}(x\d{1,9})?", text, re.ASCII)
    sides = [int(side) for side in text.split("x")] if is_size else []
    if not sides or not all(0 < side <= LONGEST_SIDE for side in sides):
        shown = text if len(text) <= 20 else f"{text[:20]}…"
        raise RecipeError(
            f"--size: must be a number of pixels up to {LONGEST_SIDE}, or HEIGHTxWIDTH, not {shown}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_views(text: str | None) -> dict[str, int]:
    """Parse the clips and crops of --views, `2x3`; empty for None.

    Raises:
        RecipeError: the text is not two numbers from 1 on.
    """
    if text is None:
        return {}
    if not re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}", text, re.ASCII):
        raise RecipeError(f"--views {text}: give CLIPSxCROPS, such as 1x1 or 5x3")
    clips, crops = map(int, text.split("x"))
    return {"clips": clips, "crops": crops}


def local_path(text: str) -> Path:
    """Parse a path on this machine.

    Raises:
        RecipeError: it is a URL, which these commands do not read.
    """
    from everest.system.storage import LOCAL, is_url

    if is_url(text) and not text.startswith(LOCAL):
        raise RecipeError(
            f"{text}: is a URL; this command reads local files only (prepare encode and shard read URLs)"
        )
    return Path(text.removeprefix(LOCAL))
