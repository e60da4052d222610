"""The choices of a sweep as a user writes them: arms of --over, seeds and stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from everest.errors import RecipeError, shown, unknown_name

StageName = Literal["pretrain", "finetune", "eval", "probe"]
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
NO_INIT: Final = "none"  # in place of weights: from scratch
MOST_SEEDS: Final = 1000  # our choice
MOST_ARMS: Final = 200  # our choice: their settings fit into one YAML file
_NEEDS: Final[dict[StageName, StageName]] = {"eval": "finetune", "probe": "pretrain"}
AFTER: Final[dict[StageName, StageName]] = {**_NEEDS, "finetune": "pretrain"}  # what a stage starts from


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the compared variants."""

    name: str
    overrides: dict[str, str] = field(default_factory=dict)  # YAML values by section.key
    stages: tuple[StageName, ...] | None = None  # None: as the sweep
    init: str | None = None  # None: as the sweep


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """A number of seeds as `5` for 0 to 4, or the seeds as `3,7,11` or `3,`."""
    wrong = RecipeError(
        f"{origin}: give a number of seeds from 1 to {MOST_SEEDS}, or different seeds such as 3,7,11"
    )
    if isinstance(value, str) and "," in value:
        value = [part.strip() for part in value.removesuffix(",").split(",")]
    numbers = value if isinstance(value, list) else [value]
    texts = [str(number) for number in numbers if not isinstance(number, bool)]
    is_valid = [text.isascii() and text.isdecimal() and int(text) < 2**63 for text in texts if len(text) < 20]
    if not is_valid or len(is_valid) < len(numbers) or not all(is_valid):
        raise wrong
    seeds = tuple(int(text) for text in texts)
    if not isinstance(value, list):
        seeds = tuple(range(seeds[0])) if seeds[0] <= MOST_SEEDS else ()
    if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise wrong
    return seeds


def read_stages(value: Any, origin: str) -> tuple[StageName, ...]:
    """Stages in their order, as a list or as `pretrain,finetune,eval`."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise RecipeError(f"{origin}: give stages such as pretrain,finetune,eval")
    for name in names:
        if name not in STAGES:
            raise unknown_name(origin, str(name), STAGES)
    stages: tuple[StageName, ...] = tuple(stage for stage in STAGES if stage in names)
    if list(stages) != names:
        raise RecipeError(f"{origin}: give each stage once, in the order {', '.join(STAGES)}")
    for stage, needed in _NEEDS.items():
        if stage in stages and needed not in stages:
            raise RecipeError(f"{origin}: {stage} needs {needed}; add it")
    return stages


def arms_of(over: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of the options --over: every combination of their values.

    An arm's name has the last parts of the keys that distinguish them, and the values: `keep_ratio=0.3`.
    """
    choices: dict[str, list[str]] = {}
    for option in over:
        key, equals, text = option.partition("=")
        key, values = key.strip(), split_values(text)
        if not equals or "." not in key or not all(values):
            raise RecipeError(f"--over {shown(option)}: give section.key=value,value")
        if key in choices:
            raise RecipeError(f"--over {key}: is given twice; give all of its values at once")
        if len(set(values)) < len(values):
            raise RecipeError(f"--over {shown(option)}: a value is given twice")
        choices[key] = values
    names = _short_names(list(choices))
    arms = []
    for values in itertools.islice(itertools.product(*choices.values()), MOST_ARMS + 1):
        overrides = dict(zip(choices, values, strict=True))
        name = ", ".join(f"{names[key]}={value}" for key, value in overrides.items())
        arms.append(Arm(name=name, overrides=overrides))
    return tuple(arms)


def split_values(text: str) -> list[str]:
    """Divide `a,[b,c],d` at the commas outside brackets and quotes."""
    parts, level, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        level += (char in "[{") - (char in "]}") if not quote else 0
        if char == "," and not level and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _short_names(keys: list[str]) -> dict[str, str]:
    """As many last parts of each key as distinguish it from the others."""
    for length in range(1, max((key.count(".") for key in keys), default=0) + 2):
        names = {key: ".".join(key.split(".")[-length:]) for key in keys}
        if len(set(names.values())) == len(keys):
            return names
    return {key: key for key in keys}
