"""Translates the errors that pydantic finds in a recipe: key, problem, nearest valid name."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from everest.config.layers import BY_BACKBONE, STAGES, KeyPath
from everest.config.settings import Recipe
from everest.config.stage_settings import TARGET_KEYS
from everest.config.tokenizer import TokenizerSettings
from everest.errors import did_you_mean, shown
from everest.methods.external import NOT_A_CLASS, is_import_path, named_class
from everest.methods.strategies import strategy_class
from everest.methods.targets import Target

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
}


def explain_validation(error: ValidationError) -> list[tuple[KeyPath, str]]:
    """The key and the message of each problem."""
    problems: list[tuple[KeyPath, str]] = []
    listed: set[tuple[int | str, ...]] = set()  # sections whose keys a message has listed
    errors = error.errors(include_url=False)
    for details in errors:
        location, kind, context = details["loc"], details["type"], details.get("ctx", {})
        inside = (other["loc"] for other in errors if len(other["loc"]) > len(location))
        if kind == "too_short" and any(other[: len(location)] == location for other in inside):
            continue  # its entries are wrong, not few
        parts = [str(part) for part in location]
        if parts[1:2] in (["selection"], ["target"]):
            del parts[2:3]  # pydantic inserts the strategy or the kind here, which the YAML does not have
        if parts[-1:] == ["[key]"]:
            del parts[-1]
        got = _shown(details["input"])
        if kind == "unexpected_keyword_argument":
            text = f"unknown key{did_you_mean(parts[-1], _known_keys(location[:-1]))}"
            if "; known: " in text:
                text = "unknown key" if location[:-1] in listed else text
                listed.add(location[:-1])
        elif kind == "literal_error":
            text = _unknown_value(details["input"], context["expected"])
        elif kind == "union_tag_not_found":
            parts.append(context["discriminator"].strip("'"))
            text = "is missing"
        elif kind == "union_tag_invalid":  # an unknown strategy of a selection, or kind of a target
            parts.append(context["discriminator"].strip("'"))
            text = _unknown_value(details["input"].get(parts[-1]), context["expected_tags"])
        elif kind == NOT_A_CLASS:
            text = context["reason"]
        elif kind in _MESSAGES:
            text = _MESSAGES[kind].format(got=got, **context)
        else:
            text = f"{details['msg']}, not {got}"
        problems.append((tuple(parts), text))
    return problems


def _unknown_value(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    if len(names) == 1:
        return f"must be '{names[0]}' in this version, not {_shown(value)}"
    return f"unknown value {_shown(value)}{did_you_mean(str(value), names)}"


def _known_keys(location: tuple[int | str, ...]) -> set[str]:
    """The keys that a section of the YAML may have, for 'did you mean'."""
    if location[1:2] == ("selection",):
        return {field.name for field in fields(strategy_class(str(location[2])))}
    if location[1:2] == ("target",):
        path = str(location[2])
        return (
            {field.name for field in fields(named_class(path, Target))}
            if is_import_path(path)
            else TARGET_KEYS
        )
    settings: Any = Recipe(name="", tokenizer=TokenizerSettings())  # a section that few recipes have
    for part in location:
        settings = getattr(settings, str(part))
    names = {field.name for field in fields(settings)}
    if not location:
        names.add("base")
    if location in {(stage,) for stage in STAGES}:
        names.add(BY_BACKBONE)
    return names


def _shown(value: Any) -> str:
    """A value as it can be written in the YAML, cut if it is long."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(json.dumps(value))
