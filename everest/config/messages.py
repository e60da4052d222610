"""Translates the errors that pydantic finds in a recipe: key, problem, nearest valid name."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from everest.config.merge import BY_BACKBONE, VIEW_DRAW, KeyPath
from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES, VARIANTS
from everest.errors import did_you_mean, shown
from everest.methods.external import NOT_A_CLASS, is_import_path, named_class

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

_FURTHER_KEYS: dict[KeyPath, set[str]] = {
    (): {"base"},
    ("pretrain", "views"): {*VIEW_DRAW},
    **{(stage,): {BY_BACKBONE} for stage in STAGES},
}


def explain_validation(error: ValidationError, place: KeyPath = ()) -> list[tuple[KeyPath, str]]:
    """The key and the message of each problem.

    Args:
        place: the section that was validated; empty: a whole recipe.
    """
    problems: list[tuple[KeyPath, str]] = []
    listed: set[KeyPath] = set()  # sections whose keys a message has listed
    errors = error.errors(include_url=False)
    for details in errors:
        location, kind, context = details["loc"], details["type"], details.get("ctx", {})
        inside = (other["loc"] for other in errors if len(other["loc"]) > len(location))
        if kind == "too_short" and any(other[: len(location)] == location for other in inside):
            continue  # its entries are wrong, not few
        key, known = _place(location, place)
        got = _shown(details["input"])
        if kind == "unexpected_keyword_argument":
            text = f"unknown key{did_you_mean(key[-1], known)}"
            if "; known: " in text:
                text = "unknown key" if key[:-1] in listed else text
                listed.add(key[:-1])
        elif kind == "literal_error":
            text = _unknown_value(details["input"], context["expected"])
        elif kind.startswith("union_tag"):  # of a section whose variants exclude each other
            key = (*key, context["discriminator"].strip("'"))
            text = "is missing"
            if kind == "union_tag_invalid":
                text = _unknown_value(details["input"].get(key[-1]), context["expected_tags"])
        else:
            text = _MESSAGES.get(kind, f"{details['msg']}, not {{got}}").format(got=got, **context)
        problems.append((key, text))
    return problems


def _place(location: tuple[int | str, ...], place: KeyPath) -> tuple[KeyPath, set[str]]:
    """The key in the YAML, and the known keys of its section.

    pydantic inserts the name of a variant (a strategy, a kind of target) after the key of the section.
    """
    key, section = place, object
    settings: type | None = None if place else Recipe
    for part in map(str, location):
        if key in VARIANTS and settings is None:
            settings = _variant(key, part)
        elif part != "[key]":
            key, section = (*key, part), settings or object
            hint = None if key in VARIANTS else get_type_hints(section).get(part)
            classes = [each for each in (hint, *get_args(hint)) if isinstance(each, type)]
            settings = next(filter(is_dataclass, classes), None)
    known = set(_FURTHER_KEYS.get(key[:-1], ()))
    for each in (section, *(VARIANTS[key[:-1]].classes.values() if key[:-1] in VARIANTS else ())):
        known |= {field.name for field in fields(each)} if is_dataclass(each) else set()
    return key, known


def _variant(section: KeyPath, name: str) -> type:
    """The class of a variant of a section, if there is one."""
    if not is_import_path(name):
        return VARIANTS[section].classes[name]
    try:
        return named_class(name, object)
    except ValueError:  # that may be the problem
        return object


def _unknown_value(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    if len(names) == 1:
        return f"must be '{names[0]}' in this version, not {_shown(value)}"
    return f"unknown value {_shown(value)}{did_you_mean(str(value), names)}"


def _shown(value: Any) -> str:
    """A value as it can be written in the YAML, cut if it is long."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(json.dumps(value))
