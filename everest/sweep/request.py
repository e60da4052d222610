"""The description of a sweep: a recipe, arms, seeds and stages, from a sweep file and options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from everest.config.recipe_files import RecipeFile, find_recipe
from everest.errors import RecipeError, did_you_mean, shown, unknown_name
from everest.sweep.choices import MOST_ARMS, NO_INIT, Arm, StageName, arms_of, read_seeds, read_stages

Equal = Literal["steps", "gmacs"]
FILE_KEYS: Final = ("recipe", "set", "arms", "seeds", "stages", "against", "equal", "init", "summary")
OWN_KEYS: Final = frozenset(FILE_KEYS) - {"summary"}  # a recipe has none of them


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A sweep as the user describes it; nothing is resolved yet."""

    label: str = ""  # the sweep file and a colon, for messages
    recipe: RecipeFile
    overrides: tuple[str, ...] = ()  # `section.key=value`, of all arms
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    stages: tuple[StageName, ...]
    init: str = NO_INIT  # of the first stage
    against: str  # the arm that the others are compared with
    equal: Equal = "steps"
    summary: str = ""


def is_sweep(file: RecipeFile) -> bool:
    """Whether a file describes a sweep, not a recipe."""
    return not OWN_KEYS.isdisjoint(file.values())


def read_request(
    source: str,
    *,
    overrides: Sequence[str] = (),
    over: Sequence[str] = (),
    seeds: str | None = None,
    stages: str | None = None,
    init: str | None = None,
    against: str | None = None,
    equal: str | None = None,
) -> SweepRequest:
    """Read a sweep file, or a recipe, with the options of the command, which win over the file.

    Args:
        source: a shipped recipe's name, or the path of a recipe or of a sweep file.
        overrides: of --set.
        over: of --over; they replace the arms of a file.
    """
    file = find_recipe(source)
    written: dict[str, Any] = file.values() if is_sweep(file) else {}
    for key in written:
        if key not in FILE_KEYS:
            raise RecipeError(f"{file.label}: {shown(key)}: unknown key{did_you_mean(key, FILE_KEYS)}")
    recipe = file if not written else _recipe_of(file, written)
    options = {"seeds": seeds, "stages": stages, "init": init, "against": against, "equal": equal}
    given = {key: value for key, value in options.items() if value is not None}
    usual = {"seeds": 1, "stages": ["pretrain", "finetune", "eval"], "init": NO_INIT, "equal": "steps"}
    values = {**usual, **written, **given}

    def origin(key: str) -> str:
        return f"--{key}" if key in given else f"{file.label}: {key}"

    shared = tuple(f"{key}={text}" for key, text in _settings(written.get("set"), origin("set")).items())
    arms = arms_of(over) if over else _read_arms(written.get("arms"), file) or (Arm(name=recipe.name),)
    if len(arms) > MOST_ARMS:
        raise RecipeError(f"more than {MOST_ARMS} arms")
    reference = values.get("against", arms[0].name)
    if over and against is None:  # the file's own names one of its own arms
        reference = arms[0].name
    if reference not in [arm.name for arm in arms]:
        raise unknown_name(origin("against"), str(reference), [arm.name for arm in arms])
    if values["equal"] not in get_args(Equal):
        raise unknown_name(origin("equal"), str(values["equal"]), get_args(Equal))
    return SweepRequest(
        label=f"{file.label}: " if written else "",
        recipe=recipe,
        overrides=(*shared, *overrides),
        arms=arms,
        seeds=read_seeds(values["seeds"], origin("seeds")),
        stages=read_stages(values["stages"], origin("stages")),
        init=_text(values["init"], origin("init")),
        against=reference,
        equal=values["equal"],
        summary=_text(written.get("summary", ""), origin("summary")),
    )


def _recipe_of(file: RecipeFile, written: dict[str, Any]) -> RecipeFile:
    named = written.get("recipe")
    if not isinstance(named, str):
        raise RecipeError(
            f"{file.label}: recipe: give the name or the path of the recipe that all arms share"
        )
    try:
        recipe = find_recipe(named, folder=file.folder or Path())
    except RecipeError as error:
        raise RecipeError(f"{file.label}: recipe: {error}") from error
    if is_sweep(recipe):
        raise RecipeError(f"{file.label}: recipe: {named} is a sweep file; give a recipe")
    return recipe


def _read_arms(values: Any, file: RecipeFile) -> tuple[Arm, ...]:
    """The arms of a sweep file."""
    label = f"{file.label}: arms"
    if values is None:
        return ()
    if not isinstance(values, dict) or not values:
        raise RecipeError(
            f"{label}: must be a mapping of names to settings, such as {{few: {{finetune.steps: 9}}}}"
        )
    arms = []
    for name, written in values.items():
        settings = {} if written is None else written
        if not name.strip() or not name.isprintable():
            raise RecipeError(f"{label}: {shown(name)}: the name of an arm must be visible text in one line")
        if not isinstance(settings, dict):
            raise RecipeError(f"{label}: {shown(name)}: must be a mapping such as {{finetune.steps: 900}}")
        own = {key: value for key, value in settings.items() if "." in key}
        for key in (key for key in settings if key not in {*own, "stages", "init"}):
            raise RecipeError(
                f"{label}: {shown(name)}: {shown(key)}: give stages, init, or settings in one line such as "
                "pretrain.steps: 900"
            )
        stages, init = settings.get("stages"), settings.get("init")
        origin = f"{label}: {name}"
        arms.append(
            Arm(
                name=name,
                overrides=_settings(own, origin),
                stages=None if stages is None else read_stages(stages, f"{origin}: stages"),
                init=None if init is None else _text(init, f"{origin}: init"),
            )
        )
    return tuple(arms)


def _settings(values: Any, origin: str) -> dict[str, str]:
    """The texts of settings that a YAML file has, as --set takes them."""
    if values is None:
        return {}
    if not isinstance(values, dict) or not all("." in key for key in values):
        raise RecipeError(f"{origin}: must be a mapping of section.key to values")
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _text(value: Any, origin: str) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{origin}: must be text, not {shown(value)}")
    return value
