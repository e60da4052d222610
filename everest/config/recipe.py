"""Reads and writes recipes: YAML and `--set` in, one frozen `Recipe` out, all problems reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from everest.config.checks import contradictions
from everest.config.layers import (
    BY_BACKBONE,
    SET,
    STAGES,
    KeyPath,
    LayerStack,
    Merged,
    drop_foreign_keys,
    inner_keys,
    make_layer,
    read_overrides,
)
from everest.config.messages import explain_validation
from everest.config.notices import notices
from everest.config.recipe_files import RecipeFile, find_recipe, with_bases
from everest.config.settings import Recipe
from everest.config.stage_settings import TARGETS
from everest.config.values import with_hyphens
from everest.config.yaml import write_yaml
from everest.errors import RecipeError, one_per_line
from everest.methods.external import import_named, is_import_path
from everest.system.storage import parse_location
from everest.system.text import is_unicode


def choose_budgets(merged: Merged) -> Iterator[tuple[KeyPath, str]]:
    """Drop the epochs below a layer with steps, and the steps below a layer with epochs.

    Yields:
        The key and the problem of each stage for which one layer gives both.
    """
    for stage in ("pretrain", "finetune", "tokenizer"):
        section = merged.values.get(stage)
        if not isinstance(section, dict) or section.get("steps") is None:
            continue
        steps, epochs = (merged.origins.get((stage, unit)) for unit in ("steps", "epochs"))
        if steps and epochs and section.get("epochs") is not None and epochs.layer >= steps.layer:
            if epochs.layer == steps.layer:
                yield (stage, "steps"), "a stage has epochs or steps, not both; remove one of them"
            section["steps"] = None
        else:
            section["epochs"] = None


_ADAPTER = TypeAdapter(Recipe)
_CLASSES = (  # the keys that may name a class of another package
    *((stage, "selection", "strategy") for stage in STAGES),
    ("pretrain", "target", "kind"),
)


def load_recipe(
    name_or_path: str | Path | RecipeFile,
    *,
    overrides: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
    imports: bool = True,
) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a shipped recipe, the path of a YAML file, or a file that was read.
        overrides: `section.key=value` texts, which win over the file.
        notify: called with one line for each key without effect that an override gives, or that the file
            changes in its base.
        imports: import the modules of other packages that the recipe names (everest.methods.external). False:
            for a recipe that no user named, such as the one next to weights.
    Raises:
        RecipeError: one line for each problem: file and key, the problem, the nearest valid name.
    """
    problems: list[str] = []
    *bases, (file, values) = with_bases(find_recipe(name_or_path))
    for _, base in bases:
        base.pop("name", None)  # a recipe does not inherit the name of its base
    layers = [make_layer(source.label, written, problems) for source, written in [*bases, (file, values)]]
    layers += read_overrides(overrides, problems)
    stack = LayerStack(file.label, recipe_values(Recipe(name=file.name)), layers)

    named = with_hyphens(stack.merged(None).at(("model", "backbone")))
    backbone = named if isinstance(named, str) else None  # a known one or not
    merged = stack.merged(backbone)
    failed_imports = list(_import_classes(merged)) if imports else []
    if failed_imports:
        raise RecipeError(one_per_line([*problems, *failed_imports]))
    dropped = drop_foreign_keys(merged)
    budgets = list(choose_budgets(merged))
    recipe, errors = _validate(merged)
    errors = budgets + errors
    if recipe and not budgets:
        errors = list(contradictions(recipe))
    problems += [f"{merged.origin(key)}: {text}" for key, text in errors]
    problems += _problems_of_other_targets(merged) + _problems_by_backbone(stack, imports=imports)
    if problems or recipe is None:
        raise RecipeError(one_per_line(problems))
    if notify:
        origins = {key: merged.origin(key) for key in inner_keys(merged.values)}
        given = {key for key, origin in origins.items() if origin.label == SET}
        if bases:  # a file without a base may list all keys, as a run writes it
            below = replace(stack, layers=layers[: len(bases)]).merged(backbone)
            own = {key for key, origin in origins.items() if origin.layer == len(bases)}
            # A run writes the keys of all kinds of targets.
            own = {key for key in own if key[:2] != ("pretrain", "target")}
            given |= {key for key in own if merged.at(key) not in (None, below.at(key))}
        for notice in [*dropped, *notices(recipe, given)]:
            notify(notice)
    return recipe


def recipe_for_run(
    name_or_path: str | Path | RecipeFile,
    *,
    data: str | None = None,
    overrides: Sequence[str] = (),
    precision: str | None = None,
    seed: int | None = None,
    notify: Callable[[str], None] | None = None,
    imports: bool = True,
) -> Recipe:
    """Read a recipe with the changes of a run.

    `data.root` becomes absolute, so that a run does not depend on the folder it was started in.

    Args:
        data: of `data.root`; precision, seed: of the section `train`. They win over `overrides`.
        notify, imports: see `load_recipe`.
    Raises:
        RecipeError: see `load_recipe`, or the name of the folder is not UTF-8.
    """
    changes = list(overrides)
    if data is not None:
        if not is_unicode(data):
            raise RecipeError(f"--data {data}: not UTF-8, which no recipe can hold; rename the folder")
        changes.append(f"data.root={json.dumps(data, ensure_ascii=False)}")
    if precision is not None:
        changes.append(f"train.precision={precision}")
    if seed is not None:
        changes.append(f"train.seed={seed}")
    recipe = load_recipe(name_or_path, overrides=changes, notify=notify, imports=imports)
    folder = str(parse_location(recipe.data.root).resolve())
    root = json.dumps(folder, ensure_ascii=False)  # quoted: overrides are YAML, which has no surrogate pairs
    return load_recipe(name_or_path, overrides=[*changes, f"data.root={root}"], imports=imports)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved YAML, without `base` and `by_backbone`; reading it gives an equal recipe."""
    return write_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """All settings as plain JSON values."""
    return _ADAPTER.dump_python(recipe, mode="json")


def _validate(merged: Merged) -> tuple[Recipe | None, list[tuple[KeyPath, str]]]:
    """The recipe, or None and its problems.

    Validates JSON, because pydantic's strict mode accepts lists for tuples there, but still not true for 1.0.
    """
    problems = [(key, "has a name that is not UTF-8; rename it") for key in _not_unicode(merged.values)]
    if problems:
        return None, problems
    try:
        return _ADAPTER.validate_json(json.dumps(merged.values), strict=True), []
    except ValidationError as error:
        return None, explain_validation(error)


def _not_unicode(value: Any, key: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of the texts that no JSON can hold."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_unicode(name, key)
            yield from _not_unicode(inner, (*key, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _not_unicode(inner, key)
    elif isinstance(value, str) and not is_unicode(value):
        yield key


def _problems_of_other_targets(merged: Merged) -> list[str]:
    """The invalid values of keys that only another kind of target has: the recipe's own kind drops them."""
    target = merged.at(("pretrain", "target"))
    if not isinstance(target, dict):
        return []
    problems = []
    for kind, settings in TARGETS.items():
        with_kind = replace(merged, values=deepcopy(merged.values))
        with_kind.values["pretrain"]["target"]["kind"] = kind
        known = {("pretrain", "target", field.name) for field in fields(settings) if field.name in target}
        errors = [(key, text) for key, text in _validate(with_kind)[1] if key[:3] in known]
        problems += [f"{merged.origin(key)}: {text}" for key, text in errors if key[2] != "kind"]
    return problems


def _import_classes(merged: Merged) -> Iterator[str]:
    """Import the modules of other packages that a recipe names; yields the problems."""
    for key in _CLASSES:
        path = merged.at(key)
        if is_import_path(path):
            try:
                import_named(path)
            except RecipeError as error:
                yield f"{merged.origin(key)}: {error}"


def _problems_by_backbone(stack: LayerStack, *, imports: bool) -> list[str]:
    """The problems inside `by_backbone`, for every backbone in it, chosen or not."""
    problems = []
    choices = [names for layer in stack.layers for names in layer.by_backbone.values()]
    for backbone in sorted({name for names in choices for name in names}):
        merged = stack.merged(backbone)
        if imports:
            problems += _import_classes(merged)
        drop_foreign_keys(merged)
        origins = [(merged.origin(key), text) for key, text in _validate(merged)[1]]
        problems += [f"{origin}: {text}" for origin, text in origins if BY_BACKBONE in origin.key]
    return problems
