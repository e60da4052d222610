"""The description of a sweep: a recipe, arms, seeds and stages, from a sweep file and options."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter

from everest.config.recipe_files import RecipeFile, find_recipe
from everest.config.run_options import StageName
from everest.config.stage_settings import STAGES
from everest.errors import RecipeError, did_you_mean, shorten, unknown_name
from everest.system.text import validate

SweepStage = StageName | Literal["eval", "probe"]
SWEEP_STAGES: Final[tuple[SweepStage, ...]] = (*STAGES, "eval", "probe")
REQUIRED_STAGE: Final[dict[SweepStage, SweepStage]] = {"eval": "finetune", "probe": "pretrain"}
FROM_SCRATCH: Final = "none"  # in place of weights
MOST_SEEDS: Final = 1000  # heuristic
MOST_ARMS: Final = 200  # heuristic
# A quoted text of YAML, where a value may begin, or a single letter.
_TOKEN: Final = re.compile(r"""(?:^|(?<=[,:\s[{]))(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")|.""", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """The keys of a sweep file. A key without a value counts as left out."""

    __pydantic_config__ = ConfigDict(coerce_numbers_to_str=True)  # the name of an arm may be 0.3
    recipe: str = ""
    set: Any = field(default_factory=dict)  # settings of all arms
    arms: Any = None  # the settings of each arm; None: one arm without any
    seeds: Any = 1
    stages: Any = "pretrain,finetune,eval"
    against: str | None = None  # None: the first arm
    init: str = FROM_SCRATCH
    summary: str = ""


_SWEEP_FILE: Final = TypeAdapter(SweepFile)
FILE_KEYS: Final = tuple(key.name for key in fields(SweepFile))
SWEEP_ONLY_KEYS: Final = frozenset(FILE_KEYS) - {"summary"}  # a recipe has none of them


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the compared variants."""

    name: str
    overrides: dict[str, str] = field(default_factory=dict)  # YAML values by section.key
    stages: tuple[SweepStage, ...] | None = None  # None: as the sweep
    init: str | None = None  # None: as the sweep


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A sweep as the user describes it, before its recipes are read."""

    label: str  # the sweep file and a colon, for messages; empty without one
    recipe: RecipeFile
    overrides: tuple[str, ...]  # `section.key=value`, of all arms
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    stages: tuple[SweepStage, ...]
    init: str  # weights of the first stage
    against: str  # the arm that the others are compared with
    summary: str


def is_sweep(file: RecipeFile) -> bool:
    """Whether a file describes a sweep, not a recipe."""
    return not SWEEP_ONLY_KEYS.isdisjoint(file.values())


def read_request(
    source: str,
    *,
    overrides: Sequence[str] = (),
    over: Sequence[str] = (),
    seeds: str | None = None,
    stages: str | None = None,
    init: str | None = None,
) -> SweepRequest:
    """Read a sweep file, or a recipe, with the options of the command, which win over the file.

    Args:
        source: a shipped recipe's name, or the path of a recipe or of a sweep file.
        overrides: of --set.
        over: options whose combinations replace the arms of a file, and the arm to compare with.
    """
    file = recipe = find_recipe(source)
    label, written = "", SweepFile()
    if is_sweep(file):
        label = f"{file.label}: "
        values = {key: value for key, value in file.values().items() if value is not None}
        for key in values:
            if key not in FILE_KEYS:
                raise RecipeError(f"{file.label}: {shorten(key)}: unknown key{did_you_mean(key, FILE_KEYS)}")
        try:
            written = validate(_SWEEP_FILE, values)
        except ValueError as error:
            problem = str(error).replace("Input should be a valid string", "must be text")
            raise RecipeError(f"{file.label}: {problem}") from error
        try:
            recipe = find_recipe(written.recipe, folder=file.folder or Path())
            if is_sweep(recipe):
                raise RecipeError(f"{recipe.label} is a sweep file; give a recipe")
        except RecipeError as error:
            raise RecipeError(f"{file.label}: recipe: {error}") from error
    if over:
        arms = parse_arms(over)
    else:
        arms = _read_arms({recipe.name: {}} if written.arms is None else written.arms, f"{label}arms")
    if len(arms) > MOST_ARMS:
        raise RecipeError(f"more than {MOST_ARMS} arms")
    names = [arm.name for arm in arms]
    against = written.against if written.against is not None and not over else names[0]
    if against not in names:
        raise unknown_name(f"{label}against", against, names)
    shared_settings = _read_settings(written.set, f"{label}set")
    return SweepRequest(
        label=label,
        recipe=recipe,
        overrides=(*(f"{key}={text}" for key, text in shared_settings.items()), *overrides),
        arms=arms,
        seeds=read_seeds(*(written.seeds, f"{label}seeds") if seeds is None else (seeds, "--seeds")),
        stages=read_stages(*(written.stages, f"{label}stages") if stages is None else (stages, "--stages")),
        init=written.init if init is None else init,
        against=against,
        summary=written.summary,
    )


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """The seeds 0 to 4 of `5`, or the seeds of `3,7,11` or `3,`."""
    texts = [str(text).strip() for text in (value if isinstance(value, list) else str(value).split(","))]
    is_count = len(texts) == 1 and not isinstance(value, list)
    numbers = [text for text in texts if text]
    if all(text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers):
        seeds = [int(text) for text in numbers]
        if is_count and seeds:
            seeds = list(range(min(seeds[0], MOST_SEEDS + 1)))
        if 1 <= len(seeds) <= MOST_SEEDS and len(set(seeds)) == len(seeds):
            return tuple(seeds)
    raise RecipeError(
        f"{origin}: give a number of seeds from 1 to {MOST_SEEDS}, or different seeds such as 3,7,11"
    )


def read_stages(value: Any, origin: str) -> tuple[SweepStage, ...]:
    """Stages in their order, as a list or as `pretrain,finetune,eval`."""
    names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
    for name in names:
        if name not in SWEEP_STAGES:
            raise unknown_name(origin, str(name), SWEEP_STAGES)
    stages: tuple[SweepStage, ...] = tuple(stage for stage in SWEEP_STAGES if stage in names)
    is_complete = all(REQUIRED_STAGE.get(stage, stage) in stages for stage in stages)
    if not names or list(stages) != names or not is_complete:
        needs = " and ".join(f"{stage} needs {needed}" for stage, needed in REQUIRED_STAGE.items())
        raise RecipeError(f"{origin}: give each stage once, in the order {', '.join(SWEEP_STAGES)}; {needs}")
    return stages


def parse_arms(over: Sequence[str]) -> tuple[Arm, ...]:
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
            raise RecipeError(f"--over {shorten(option)}: {fix}")
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
    """Divide `a,[b,c],'d,e'` at the commas outside brackets and quotes; the values keep their quotes."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in "[{") - (token in "]}")
        if token == "," and not depth:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _read_arms(values: Any, origin: str) -> tuple[Arm, ...]:
    """The arms of a sweep file, by their names."""
    names = list(values) if isinstance(values, dict) else []
    if not names or not all(name.isprintable() and name.strip() for name in names):
        raise RecipeError(f"{origin}: give visible names with settings: {{few: {{finetune.steps: 9}}}}")
    arms = []
    for name, written in zip(names, values.values(), strict=True):
        place = f"{origin}: {shorten(name)}"
        arm = {} if written is None else written
        overrides = _read_settings(arm, place, besides=("stages", "init"))
        stages, init = arm.get("stages"), arm.get("init")
        stages = None if stages is None else read_stages(stages, f"{place}: stages")
        init = None if init is None else str(init)
        arms.append(Arm(name=name, overrides=overrides, stages=stages, init=init))
    return tuple(arms)


def _read_settings(values: Any, origin: str, *, besides: Sequence[str] = ()) -> dict[str, str]:
    """The settings that a YAML file has by section.key, as --set takes them; `besides` are other keys."""
    keys = [key for key in values if key not in besides] if isinstance(values, dict) else [""]
    if not all("." in str(key) for key in keys):
        raise RecipeError(f"{origin}: give settings in one line, such as pretrain.steps: 900")
    return {key: json.dumps(values[key], ensure_ascii=False) for key in keys}
