"""The description of a sweep: a recipe, variants, seeds and stages, from a sweep file and options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter

from everest.config.recipe_files import RecipeFile, find_recipe
from everest.config.stage_settings import STAGES
from everest.config.values import StageName
from everest.config.yaml import read_yaml, split_values
from everest.errors import RecipeError, did_you_mean, shorten, unknown_name
from everest.system.text import validate

SweepStage = StageName | Literal["eval", "probe"]
SWEEP_STAGES: Final[tuple[SweepStage, ...]] = (*STAGES, "eval", "probe")
REQUIRED_STAGE: Final[dict[SweepStage, SweepStage]] = {"eval": "finetune", "probe": "pretrain"}
FROM_SCRATCH: Final = "none"  # in place of weights
SEED_FIELD: Final = "{seed}"  # in a name of weights
MAX_SEEDS: Final = 1000  # heuristic
MAX_VARIANTS: Final = 200  # heuristic


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """The keys of a sweep file. A key without a value counts as left out."""

    __pydantic_config__ = ConfigDict(coerce_numbers_to_str=True)  # the name of a variant may be 0.3
    recipe: str = ""
    set: Any = field(default_factory=dict)  # settings of all variants
    variants: Any = None  # the settings of each variant; None: one variant without any
    seeds: Any = 1
    stages: Any = "pretrain,finetune,eval"
    against: str | None = None  # None: the first variant
    init: str = FROM_SCRATCH
    summary: str = ""


FILE_KEYS: Final = tuple(key.name for key in fields(SweepFile))
SWEEP_ONLY_KEYS: Final = frozenset(FILE_KEYS) - {"summary"}  # a recipe has none of them


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the compared variants."""

    name: str
    overrides: dict[str, Any]  # values by section.key
    stages: tuple[SweepStage, ...]
    init: str  # weights of the first stage, with SEED_FIELD if each seed has its own


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A sweep as the user describes it, before its recipes are read."""

    message_prefix: str  # the sweep file and a colon, for messages; empty without one
    recipe: RecipeFile
    overrides: tuple[str, ...]  # `section.key=value`, of all variants
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    stages: tuple[SweepStage, ...]
    against: str  # the variant that the others are compared with
    summary: str

    def dump(self) -> dict[str, Any]:
        """A sweep file that gives the same jobs, without the folder of videos."""
        settings = (override.partition("=") for override in self.overrides)
        recipe = self.recipe
        return {
            "recipe": recipe.name if recipe.folder is None else str(Path(recipe.label).resolve()),
            "set": {key.strip(): read_yaml(text, key) for key, _, text in settings},
            "seeds": list(self.seeds),
            "stages": list(self.stages),
            "against": self.against,
            "summary": self.summary,
            "variants": {
                variant.name: {"stages": list(variant.stages), "init": variant.init, **variant.overrides}
                for variant in self.variants
            },
        }


def is_sweep_file(file: RecipeFile) -> bool:
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
    """Read a sweep file or a recipe, with the options of the command, which win over the file.

    Each variant of a file gets all combinations of `over`.
    """
    file = recipe = find_recipe(source)
    where, written = "", SweepFile()
    if is_sweep_file(file):
        where, written = f"{file.label}: ", _read_file(file)
        try:
            recipe = find_recipe(written.recipe, folder=file.folder or Path())
            if is_sweep_file(recipe):
                raise RecipeError(f"{recipe.label} is a sweep file; give a recipe")
        except RecipeError as error:
            raise RecipeError(f"{where}recipe: {error}") from error
    shared = Variant(
        name=recipe.name,
        overrides={},
        stages=read_stages(*(written.stages, f"{where}stages") if stages is None else (stages, "--stages")),
        init=written.init if init is None else init,
    )
    variants = (
        [shared] if written.variants is None else _read_variants(written.variants, shared, f"{where}variants")
    )
    against = variants[0].name if written.against is None else written.against
    if against not in (names := [variant.name for variant in variants]):
        raise unknown_name(f"{where}against", against, names)
    if combinations := combine_values(over):
        of_file = written.variants is not None
        variants = [
            replace(
                variant,
                name=f"{variant.name}, {name}" if of_file else name,
                overrides=variant.overrides | values,
            )
            for variant in variants
            for name, values in combinations.items()
        ]
        against = variants[names.index(against) * len(combinations)].name
    if len(variants) > MAX_VARIANTS:
        raise RecipeError(f"more than {MAX_VARIANTS} variants")
    settings = _read_settings(written.set, f"{where}set")
    return SweepRequest(
        message_prefix=where,
        recipe=recipe,
        overrides=(*as_overrides(settings), *overrides),
        variants=tuple(variants),
        seeds=read_seeds(*(written.seeds, f"{where}seeds") if seeds is None else (seeds, "--seeds")),
        stages=shared.stages,
        against=against,
        summary=written.summary,
    )


def _read_file(file: RecipeFile) -> SweepFile:
    """The keys of a sweep file; the values of variants, seeds and stages are not read yet."""
    values = {key: value for key, value in file.values().items() if value is not None}
    for key in values:
        if key not in FILE_KEYS:
            raise RecipeError(f"{file.label}: {shorten(key)}: unknown key{did_you_mean(key, FILE_KEYS)}")
    try:
        return validate(TypeAdapter(SweepFile), values)
    except ValueError as error:
        problem = str(error).replace("Input should be a valid string", "must be text")
        raise RecipeError(f"{file.label}: {problem}") from error


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """The seeds 0 to 4 of `5`, or the seeds of `3,7,11` or `3,`."""
    texts = [str(text).strip() for text in (value if isinstance(value, list) else str(value).split(","))]
    is_count = len(texts) == 1 and not isinstance(value, list)
    numbers = [text for text in texts if text]
    if all(text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers):
        seeds = [int(text) for text in numbers]
        if is_count and seeds:
            seeds = list(range(min(seeds[0], MAX_SEEDS + 1)))
        if 1 <= len(seeds) <= MAX_SEEDS and len(set(seeds)) == len(seeds):
            return tuple(seeds)
    raise RecipeError(
        f"{origin}: give a number of seeds from 1 to {MAX_SEEDS}, or different seeds such as 3,7,11"
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


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings by section.key, as --set takes them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def combine_values(over: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every combination of the values of --over, as settings by the name of their variant.

    A name has the last part of each key, or the key if two have the same, and the values: `keep_ratio=0.3`.
    """
    choices: dict[str, list[str]] = {}
    for option in over:
        key, _, text = option.partition("=")
        key, values = key.strip(), split_values(text)
        if "." not in key or not values or key in choices or len(set(values)) < len(values):
            fix = "give section.key=value,value, each key and each of its values once"
            raise RecipeError(f"--over {shorten(option)}: {fix}")
        choices[key] = values
    names = [key.rpartition(".")[2] for key in choices]
    names = names if len(set(names)) == len(names) else list(choices)
    combinations = {}
    for texts in itertools.islice(itertools.product(*choices.values()), MAX_VARIANTS + 1) if choices else ():
        name = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        combinations[name] = {key: read_yaml(text, key) for key, text in zip(choices, texts, strict=True)}
    return combinations


def _read_variants(values: Any, shared: Variant, origin: str) -> list[Variant]:
    """The variants of a sweep file; `shared` has the stages and weights of those that name none."""
    names = list(values) if isinstance(values, dict) else []
    if not names or not all(name.isprintable() and name.strip() for name in names):
        raise RecipeError(f"{origin}: give visible names with settings: {{few: {{finetune.steps: 9}}}}")
    variants = []
    for name, written in values.items():
        where = f"{origin}: {shorten(name)}"
        variant = {} if written is None else written
        own: dict[str, Any] = {"overrides": _read_settings(variant, where, besides=("stages", "init"))}
        if variant.get("stages") is not None:
            own["stages"] = read_stages(variant["stages"], f"{where}: stages")
        if variant.get("init") is not None:
            own["init"] = str(variant["init"])
        variants.append(replace(shared, name=name, **own))
    return variants


def _read_settings(values: Any, origin: str, *, besides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a YAML file has by section.key; `besides` are other keys."""
    keys = [key for key in values if key not in besides] if isinstance(values, dict) else [""]
    if not all("." in str(key) for key in keys):
        raise RecipeError(f"{origin}: give settings in one line, such as pretrain.steps: 900")
    return {key: values[key] for key in keys}
