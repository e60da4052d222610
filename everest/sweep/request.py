"""The description of a sweep: a recipe, arms, seeds and stages, from a sweep file and options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from everest.config.recipe_files import RecipeFile, find_recipe
from everest.errors import RecipeError, did_you_mean, shown, unknown_name

StageName = Literal["pretrain", "finetune", "eval", "probe"]
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
NEEDS: Final[dict[StageName, StageName]] = {"eval": "finetune", "probe": "pretrain"}
FROM_SCRATCH: Final = "none"  # in place of weights
MOST_SEEDS: Final = 1000  # our choice
MOST_ARMS: Final = 200  # our choice
FILE_KEYS: Final = ("recipe", "set", "arms", "seeds", "stages", "against", "init", "summary")
OWN_KEYS: Final = frozenset(FILE_KEYS) - {"summary"}  # a recipe has none of them


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the compared variants."""

    name: str
    overrides: dict[str, str] = field(default_factory=dict)  # YAML values by section.key
    stages: tuple[StageName, ...] | None = None  # None: as the sweep
    init: str | None = None  # None: as the sweep


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A sweep as the user describes it; no recipe is resolved yet."""

    label: str = ""  # the sweep file and a colon, for messages
    recipe: RecipeFile
    overrides: tuple[str, ...] = ()  # `section.key=value`, of all arms
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    stages: tuple[StageName, ...]
    init: str = FROM_SCRATCH  # weights of the first stage
    against: str  # the arm that the others are compared with
    summary: str = ""


def is_sweep(file: RecipeFile) -> bool:
    """Whether a file describes a sweep, not a recipe."""
    return not OWN_KEYS.isdisjoint(file.values())


def read_request(
    source: str, *, overrides: Sequence[str] = (), over: Sequence[str] = (), **options: str | None
) -> SweepRequest:
    """Read a sweep file, or a recipe, with the options of the command, which win over the file.

    Args:
        source: a shipped recipe's name, or the path of a recipe or of a sweep file.
        overrides: of --set.
        over: of --over; they replace the arms of a file.
        options: `seeds`, `stages` and `init`; None: not given.
    """
    file = find_recipe(source)
    written: dict[str, Any] = file.values() if is_sweep(file) else {}
    for key in written:
        if key not in FILE_KEYS:
            raise RecipeError(f"{file.label}: {shown(key)}: unknown key{did_you_mean(key, FILE_KEYS)}")
    recipe = file
    if written:
        try:
            recipe = find_recipe(str(written.get("recipe", "")), folder=file.folder or Path())
            if is_sweep(recipe):
                raise RecipeError(f"{recipe.label} is a sweep file; give a recipe")
        except RecipeError as error:
            raise RecipeError(f"{file.label}: recipe: {error}") from error
    given_arms = written.get("arms", {recipe.name: {}})
    arms = arms_of(over) if over else _read_arms(given_arms, f"{file.label}: arms")
    if len(arms) > MOST_ARMS:
        raise RecipeError(f"more than {MOST_ARMS} arms")
    if over:
        written.pop("against", None)  # it names an arm of the file
    given = {key: value for key, value in options.items() if value is not None}
    usual = {"seeds": 1, "stages": ["pretrain", "finetune", "eval"], "init": FROM_SCRATCH, "summary": ""}
    values = {**usual, "against": arms[0].name, **written, **given}
    origins = {key: f"--{key}" if key in given else f"{file.label}: {key}" for key in values}
    if values["against"] not in [arm.name for arm in arms]:
        raise unknown_name(origins["against"], str(values["against"]), [arm.name for arm in arms])
    shared = _settings(written.get("set", {}), f"{file.label}: set")
    return SweepRequest(
        label=f"{file.label}: " if written else "",
        recipe=recipe,
        overrides=(*(f"{key}={text}" for key, text in shared.items()), *overrides),
        arms=arms,
        seeds=read_seeds(values["seeds"], origins["seeds"]),
        stages=read_stages(values["stages"], origins["stages"]),
        init=str(values["init"]),
        against=values["against"],
        summary=str(values["summary"]),
    )


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """The seeds 0 to 4 of `5`, or the seeds of `3,7,11` or `3,`."""
    is_count = not isinstance(value, list) and "," not in str(value)
    texts = [str(text).strip() for text in (value if isinstance(value, list) else str(value).split(","))]
    seeds = [int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) < 19]
    is_valid = len(seeds) == len([text for text in texts if text]) > 0
    if is_valid and is_count:
        is_valid, seeds = seeds[0] <= MOST_SEEDS, list(range(min(seeds[0], MOST_SEEDS)))
    if not is_valid or not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise RecipeError(
            f"{origin}: give a number of seeds from 1 to {MOST_SEEDS}, or different seeds such as 3,7,11"
        )
    return tuple(seeds)


def read_stages(value: Any, origin: str) -> tuple[StageName, ...]:
    """Stages in their order, as a list or as `pretrain,finetune,eval`."""
    names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
    for name in names:
        if name not in STAGES:
            raise unknown_name(origin, str(name), STAGES)
    stages: tuple[StageName, ...] = tuple(stage for stage in STAGES if stage in names)
    is_complete = all(NEEDS.get(stage, stage) in stages for stage in stages)
    if not names or list(stages) != names or not is_complete:
        needs = " and ".join(f"{stage} needs {needed}" for stage, needed in NEEDS.items())
        raise RecipeError(f"{origin}: give each stage once, in the order {', '.join(STAGES)}; {needs}")
    return stages


def arms_of(over: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of the options --over: every combination of their values.

    An arm's name has the last part of each key, or the key if two have the same, and the values:
    `keep_ratio=0.3`.
    """
    choices: dict[str, list[str]] = {}
    for option in over:
        key, equals, text = option.partition("=")
        key, values = key.strip(), split_values(text)
        is_written = equals and "." in key and all(values)
        if not is_written or key in choices or len(set(values)) < len(values):
            fix = "give section.key=value,value, each key and each of its values once"
            raise RecipeError(f"--over {shown(option)}: {fix}")
        choices[key] = values
    names = [key.rpartition(".")[2] for key in choices]
    if len(set(names)) < len(names):
        names = list(choices)
    arms = []
    for values in itertools.islice(itertools.product(*choices.values()), MOST_ARMS + 1):
        name = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        arms.append(Arm(name=name, overrides=dict(zip(choices, values, strict=True))))
    return tuple(arms)


def split_values(text: str) -> list[str]:
    """Divide `a,[b,c],d` at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _read_arms(values: Any, origin: str) -> tuple[Arm, ...]:
    """The arms of a sweep file, by their names."""
    names = [str(name) for name in values] if isinstance(values, dict) else []
    if not names or not all(name.isprintable() and name.strip() for name in names):
        raise RecipeError(f"{origin}: give visible names with settings: {{few: {{finetune.steps: 9}}}}")
    arms = []
    for name, written in zip(names, values.values(), strict=True):
        place, arm = f"{origin}: {shown(name)}", {} if written is None else written
        overrides = _settings(arm, place, besides=("stages", "init"))
        stages, init = arm.get("stages"), arm.get("init")
        stages = None if stages is None else read_stages(stages, f"{place}: stages")
        init = None if init is None else str(init)
        arms.append(Arm(name=name, overrides=overrides, stages=stages, init=init))
    return tuple(arms)


def _settings(values: Any, origin: str, *, besides: Sequence[str] = ()) -> dict[str, str]:
    """The settings that a YAML file has by section.key, as --set takes them; `besides` are other keys."""
    keys = [key for key in values if key not in besides] if isinstance(values, dict) else [""]
    if not all("." in str(key) for key in keys):
        raise RecipeError(f"{origin}: give settings in one line, such as pretrain.steps: 900")
    return {key: json.dumps(values[key], ensure_ascii=False) for key in keys}
