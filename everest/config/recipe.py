"""Reads and writes recipes: YAML and `--set` in, one frozen `Recipe` out, all problems reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from everest.config.contradictions import Problem, contradictions
from everest.config.merge import DEFAULTS_BY_KEY, KEYS_WITHOUT_FIELD, merge
from everest.config.recipe_files import RecipeFile, find_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import SECTION_VARIANTS, SELECTION_KEY, STAGES, KeyPath, PretrainSelection
from everest.config.yaml import write_yaml
from everest.errors import RecipeError, did_you_mean, one_per_line, shorten
from everest.methods.external import NOT_A_CLASS, import_named, is_import_path, named_class
from everest.methods.selection import Strategy
from everest.system.storage import parse_location

Settings = TypeVar("Settings")

_RECIPE = TypeAdapter(Recipe)
_SELECTION: TypeAdapter[Strategy] = TypeAdapter(PretrainSelection)
_CLASS_KEYS = (  # the keys that may name a class of another package
    *((stage, "selection", "strategy") for stage in STAGES),
    ("pretrain", "target", "kind"),
)

# A resumed run may change its name, the folder of its videos, how they are read, when states are saved, and
# whether blocks are recomputed, which changes no number.
RESUME_MAY_CHANGE: Final = {
    "name",
    "summary",
    "data.root",
    "train.workers",
    "train.data_timeout",
    "train.checkpointing",
    "train.save_every",
}

# By pydantic's type of error. {got} is the value; the other names come from the context of the error.
_MESSAGES = {
    "int_type": "must be an integer, not {got}",
    "float_type": "must be a number, not {got}",
    "finite_number": "must be a finite number, not {got}",
    "bool_type": "must be true or false, not {got}",
    "string_type": "must be text, not {got}",
    "tuple_type": "must be a list, not {got}",
    "too_long": "must have {max_length} entries, not {actual_length}",
    "too_short": "must have at least {min_length} entry",
    "missing": "must be given",
    "dict_type": "must be a mapping of keys, not {got}",
    "dataclass_type": "must be a mapping of keys, not {got}",
    "model_attributes_type": "must be a mapping of keys, not {got}",
    "greater_than": "must be more than {gt}, not {got}",
    "greater_than_equal": "must be at least {ge}, not {got}",
    "less_than": "must be less than {lt}, not {got}",
    "less_than_equal": "must be at most {le}, not {got}",
    "value_error": "{error}, not {got}",
    NOT_A_CLASS: "{reason}",
}


def load_recipe(
    name_or_path: str | Path | RecipeFile,
    *,
    overrides: Sequence[str] = (),
    imports: bool = True,
    consistent: bool = True,
) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a shipped recipe, the path of a YAML file, or a file that was read.
        overrides: `section.key=value` texts, which win over the file.
        imports: import all modules that the recipe names (everest.methods.external). False: only those that
            `import_known` accepts, for a recipe that no user named, such as the one next to weights.
        consistent: refuse settings that contradict each other.
    Raises:
        RecipeError: one line for each problem: file and key, the problem, the nearest valid name.
    """
    merged = merge(find_recipe(name_or_path), overrides)
    recipe: Recipe | None = None
    problems: list[Problem] = []
    for key in _CLASS_KEYS if imports else ():
        path = merged.at(key).value
        if is_import_path(path):
            try:
                import_named(path)
            except RecipeError as error:
                problems.append((".".join(key), str(error)))
    if not problems:
        # From JSON, where pydantic's strict mode accepts a list for a tuple, and still refuses true for 1.0.
        values = json.dumps(merged.values)
        recipe, problems = _validated(lambda: _RECIPE.validate_json(values, strict=True))
    if recipe is not None and consistent:
        problems = list(contradictions(recipe))
    lines = [
        *merged.problems,
        *(f"{merged.location(tuple(key.split('.')))}: {text}" for key, text in problems),
    ]
    if lines or recipe is None:
        raise RecipeError(one_per_line(lines))
    return recipe


def recipe_for_run(
    name_or_path: str | Path | RecipeFile,
    *,
    data: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    imports: bool = True,
) -> Recipe:
    """Read a recipe with the changes of a run.

    `data.root` becomes absolute, so that a run does not depend on the folder it was started in.

    Args:
        data: the value of `data.root`, which wins over `overrides`.
        imports: see `load_recipe`.
    Raises:
        RecipeError: see `load_recipe`.
    """
    changes = [*(overrides or ())]
    if data is not None:
        changes.append(f"data.root={json.dumps(str(data), ensure_ascii=False)}")
    recipe = load_recipe(name_or_path, overrides=changes, imports=imports)
    root = parse_location(recipe.data.root).resolve()
    return replace(recipe, data=replace(recipe.data, root=str(root)))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved YAML, without `base` and `by_backbone`; reading it gives an equal recipe."""
    return write_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """All settings as plain JSON values."""
    return _RECIPE.dump_python(recipe, mode="json")


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys with dots, such as `pretrain.base_lr`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            leaves |= flat_values(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def recipe_of_sections(sections: dict[str, Any], *, checked: Collection[str]) -> Recipe:
    """A recipe with these sections; all other settings have their defaults.

    Args:
        checked: the sections whose settings must not contradict each other.
    Raises:
        RecipeError: one line for each problem.
    """
    pretrain = {"objective": "reconstruct", **sections.get("pretrain", {})}
    values = {"name": "notebook", **sections, "pretrain": pretrain}
    recipe, problems = _validated(lambda: _RECIPE.validate_python(values))
    if recipe is not None:
        problems = [each for each in contradictions(recipe) if each[0].split(".")[0] in checked]
    return _without_problems(recipe, problems)


def make_strategy(name: str, settings: Mapping[str, Any], *, keep: float | None = None) -> Strategy:
    """A strategy by its name in a recipe, with these settings.

    Args:
        keep: the fraction of the tokens that it encodes, unless `settings` set it; None: as in a recipe.
    Raises:
        RecipeError: an unknown strategy or setting, or invalid values.
        ValueError: `keep` is not in (0, 1].
    """
    if is_import_path(name):
        import_named(name)
    values = {"strategy": name, **settings}
    strategy, problems = _validated(lambda: _SELECTION.validate_python(values), SELECTION_KEY)
    if strategy is not None and keep is not None:
        strategy = replace(strategy.keeping(keep), **{key: getattr(strategy, key) for key in settings})
    # `keep` alone is checked already, and can be 1, which leaves pre-training nothing to predict.
    if strategy is not None and settings:
        problems = [(f"pretrain.selection.{key}", text) for key, text in strategy.problems()]
    return _without_problems(strategy, problems)


def _validated(
    validate: Callable[[], Settings], section: KeyPath = ()
) -> tuple[Settings | None, list[Problem]]:
    """The settings of a section, or None and their problems; the section () is the whole recipe."""
    try:
        return validate(), []
    except ValidationError as error:
        return None, _explain(error, section)


def _without_problems(settings: Settings | None, problems: list[Problem]) -> Settings:
    if problems or settings is None:
        raise RecipeError(one_per_line(f"{key}: {text}" for key, text in problems))
    return settings


def _explain(error: ValidationError, section: KeyPath) -> list[Problem]:
    """The problems that pydantic found in a section."""
    errors = error.errors(include_url=False)
    with_wrong_entries = {each["loc"][:depth] for each in errors for depth in range(len(each["loc"]))}
    return [
        _explain_one(each, section)
        for each in errors
        # pydantic counts only correct entries: a list with a wrong one may be too short as well.
        if not (each["type"] == "too_short" and each["loc"] in with_wrong_entries)
    ]


def _explain_one(details: ErrorDetails, section: KeyPath) -> Problem:
    """The key, with dots, and the message of one of pydantic's problems in a section."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    key, variant = _key_of(details["loc"], section)
    if kind.startswith("union_tag"):  # no variant of the section `key` is chosen
        key = (*key, context["discriminator"].strip("'"))
    match kind:
        case "unexpected_keyword_argument":
            text = _unknown_key(key, variant)
        case "literal_error":
            text = _unknown_value(value, context["expected"])
        case "union_tag_invalid":
            text = _unknown_value(value.get(key[-1]), context["expected_tags"])
        case "union_tag_not_found":
            text = "is missing"
        case _:
            message = _MESSAGES.get(kind, f"{details['msg']}, not {{got}}")
            text = message.format(got=_quoted(value), **context)
    return ".".join(key), text


def _key_of(location: tuple[int | str, ...], section: KeyPath) -> tuple[KeyPath, str]:
    """The key in a recipe of one of pydantic's locations inside a section, and the last variant on the way.

    pydantic writes the chosen variant after the key of a section that has variants: its location
    `pretrain pixels selection tube mask_ratio` is the key pretrain.selection.mask_ratio, of the variant tube.
    """
    key, variant = section, ""
    variant_follows = key in SECTION_VARIANTS
    for part in map(str, location):
        if variant_follows:
            variant, variant_follows = part, False
        elif part != "[key]":  # pydantic's word for a wrong key of a mapping, after the key itself
            key = (*key, part)
            variant_follows = key in SECTION_VARIANTS
    return key, variant


def _unknown_key(key: KeyPath, variant: str) -> str:
    """The message about a key that the section, or its variant, does not have."""
    *outer, name = key
    section = tuple(outer)
    known = {each[len(section)] for each in DEFAULTS_BY_KEY if each[: len(section)] == section != each}
    known.update(KEYS_WITHOUT_FIELD.get(section, ()))
    if section in SECTION_VARIANTS:
        classes: list[Any] = [*SECTION_VARIANTS[section].classes.values()]
        if is_import_path(variant):
            classes.append(named_class(variant, object))
        known |= {each.name for cls in classes for each in fields(cls)}
    if name in known:
        tag = ".".join((*section, SECTION_VARIANTS[section].tag))
        return f"has no effect with {tag}={shorten(variant)}; leave it out"
    inner: dict[str, list[str]] = {}  # keys of the sections in this one, by their last name
    for each in DEFAULTS_BY_KEY:
        if each[:-2] == section:
            inner.setdefault(each[-1], []).append(".".join(each))
    close = get_close_matches(name, sorted({*known, *inner}), n=1)
    if close and close[0] not in known:
        return f"unknown key; did you mean {' or '.join(map(repr, inner[close[0]]))}?"
    return f"unknown key{did_you_mean(name, known)}"


def _unknown_value(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    if len(names) == 1:
        return f"must be '{names[0]}' in this version, not {_quoted(value)}"
    return f"unknown value {_quoted(value)}{did_you_mean(str(value), names)}"


def _quoted(value: Any) -> str:
    """A value as it can be written in the YAML, cut if it is long."""
    return f"'{shorten(value)}'" if isinstance(value, str) else shorten(json.dumps(value))
