"""Reads and writes recipes: YAML and `--set` in, one frozen `Recipe` out, all problems reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from everest.config.contradictions import contradictions
from everest.config.merge import SELECTION, SET, TAGS, KeyPath, Merged, leaves, merge
from everest.config.recipe_files import RecipeFile, find_recipe
from everest.config.settings import Recipe
from everest.config.values import with_hyphens
from everest.config.yaml import write_yaml
from everest.errors import RecipeError, did_you_mean, one_per_line, shown
from everest.methods.external import NOT_A_CLASS
from everest.methods.selector import Selector
from everest.methods.strategies import STRATEGIES
from everest.system.storage import parse_location

_RECIPE = TypeAdapter(Recipe)

# The name of a recipe, the folder of the same videos, and how these are read and states are saved.
RESUME_MAY_CHANGE: Final = {
    *("name", "summary", "data.root"),
    *("train.workers", "train.data_timeout", "train.save_every", "train.keep_states"),
}

# By pydantic's types of errors; {got} is the value, the other names are from pydantic's own context.
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
) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a shipped recipe, the path of a YAML file, or a file that was read.
        overrides: `section.key=value` texts, which win over the file.
        imports: import the modules of other packages that the recipe names (everest.methods.external). False:
            for a recipe that no user named, such as the one next to weights.
    Raises:
        RecipeError: one line for each problem: file and key, the problem, the nearest valid name.
    """
    return _validated(merge(find_recipe(name_or_path), overrides, imports=imports))


def recipe_for_run(
    name_or_path: str | Path | RecipeFile,
    *,
    data: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    precision: str | None = None,
    seed: int | None = None,
    imports: bool = True,
) -> Recipe:
    """Read a recipe with the changes of a run, which win over `overrides`; see `load_recipe`.

    `data.root` becomes absolute, so that a run does not depend on the folder it was started in.
    """
    root = None if data is None else str(data)
    options = {"data.root": root, "train.precision": precision, "train.seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    changes = [
        *(overrides or ()),
        *(f"{key}={json.dumps(each, ensure_ascii=False)}" for key, each in given.items()),
    ]
    recipe = load_recipe(name_or_path, overrides=changes, imports=imports)
    root = parse_location(recipe.data.root).resolve()
    return replace(recipe, data=replace(recipe.data, root=str(root)))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved YAML, without `base` and `by_backbone`; reading it gives an equal recipe."""
    return write_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """All settings as plain JSON values."""
    return _RECIPE.dump_python(recipe, mode="json")


def flat_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values by their keys with dots, such as `pretrain.base_lr`; heads are one value."""
    return {".".join(key): value for key, value in leaves(values).items()}


def recipe_of_sections(
    sections: Mapping[str, Any], *, checked: Collection[str], imports: bool = False
) -> Recipe:
    """A recipe with these sections, and defaults for the others; see `load_recipe`.

    Args:
        checked: the sections whose settings must not contradict each other.
    """
    text = json.dumps(sections, default=str, ensure_ascii=False)
    file = RecipeFile(name="notebook", label=SET, text=text, folder=None)
    return _validated(merge(file, (), imports=imports), checked=checked)


def make_selector(strategy: str, settings: Mapping[str, Any], *, keep: float | None = None) -> Selector:
    """A strategy with these settings.

    Args:
        keep: the share of the tokens that it encodes, unless `settings` set it; None: as in a recipe.
    Raises:
        RecipeError: an unknown strategy or setting, or invalid values.
        ValueError: `keep` is not in (0, 1].
    """
    cls = STRATEGIES.get(with_hyphens(strategy))
    section = {**(asdict(cls()) if cls else {}), "strategy": strategy, **settings}
    recipe = recipe_of_sections({"pretrain": {"selection": section}}, checked=(), imports=True)
    selector: Selector = recipe.pretrain.selection
    if keep is not None:
        selector = replace(selector.keeping(keep), **{name: getattr(selector, name) for name in settings})
    # `keep` alone is checked already, and can be 1, which leaves pre-training nothing to predict.
    if settings and (problems := list(selector.problems())):
        raise RecipeError(one_per_line(f"{'.'.join(SELECTION)}.{key}: {text}" for key, text in problems))
    return selector


def _validated(merged: Merged, *, checked: Collection[str] | None = None) -> Recipe:
    """The settings, if they are valid.

    Args:
        checked: the sections whose settings must not contradict each other; None: all.
    """
    try:
        # Of JSON, because pydantic's strict mode accepts lists for tuples there, but still not true for 1.0.
        recipe = _RECIPE.validate_json(json.dumps(merged.values, default=str), strict=True)
    except ValidationError as error:
        recipe, problems = None, _explain(error)
    else:
        problems = [] if merged.problems else list(contradictions(recipe))
        if checked is not None:
            problems = [each for each in problems if each[0].split(".")[0] in checked]
    lines = [f"{merged.place(tuple(key.split('.')))}: {text}" for key, text in problems] + merged.problems
    if lines or recipe is None:
        raise RecipeError(one_per_line(lines))
    return recipe


def _explain(error: ValidationError) -> list[tuple[str, str]]:
    """The key, with dots, and the message of each problem."""
    problems: list[tuple[str, str]] = []
    errors = error.errors(include_url=False)
    for details in errors:
        location, kind, context = details["loc"], details["type"], details.get("ctx", {})
        inside = (other["loc"] for other in errors if len(other["loc"]) > len(location))
        if kind == "too_short" and any(other[: len(location)] == location for other in inside):
            continue  # its entries are wrong, not few
        key, got = _yaml_key(location), _quoted(details["input"])
        if kind == "literal_error":
            text = _unknown_value(details["input"], context["expected"])
        elif kind.startswith("union_tag"):  # of a section whose variants exclude each other
            key = (*key, TAGS[key])
            text = _unknown_value(details["input"].get(key[-1]), context.get("expected_tags", ""))
        else:
            text = _MESSAGES.get(kind, f"{details['msg']}, not {{got}}").format(got=got, **context)
        problems.append((".".join(key), text))
    return problems


def _yaml_key(location: tuple[int | str, ...]) -> KeyPath:
    """The key in the YAML: pydantic inserts the variant of a section after the section's key."""
    key, parts = (), iter(map(str, location))
    for part in parts:
        key = (*key, part) if part != "[key]" else key
        if key in TAGS:
            next(parts, None)
    return key


def _unknown_value(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    return f"unknown value {_quoted(value)}{did_you_mean(str(value), names)}"


def _quoted(value: Any) -> str:
    """A value as it can be written in the YAML, cut if it is long."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(json.dumps(value))
