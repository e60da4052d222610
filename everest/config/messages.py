"""Translates the errors that pydantic finds in a recipe: key, problem, nearest valid name."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from everest.config.merge import KeyPath, known_keys
from everest.config.stage_settings import VARIANTS
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


def explain_validation(error: ValidationError, section: KeyPath = ()) -> list[tuple[str, str]]:
    """The key, with dots, and the message of each problem.

    Args:
        section: the one that was validated; empty: a whole recipe.
    """
    problems: list[tuple[str, str]] = []
    listed: set[KeyPath] = set()  # sections whose keys a message has listed
    errors = error.errors(include_url=False)
    for details in errors:
        location, kind, context = details["loc"], details["type"], details.get("ctx", {})
        inside = (other["loc"] for other in errors if len(other["loc"]) > len(location))
        if kind == "too_short" and any(other[: len(location)] == location for other in inside):
            continue  # its entries are wrong, not few
        key, variant = _place(location, section)
        got = _shown(details["input"])
        if kind == "unexpected_keyword_argument":
            known = known_keys(key[:-1])
            if is_import_path(variant) and key[:-1] in VARIANTS:
                cls: Any = named_class(variant, object)
                known |= {each.name for each in fields(cls)}
            text = f"unknown key{did_you_mean(key[-1], known)}"
            if key[-1] in known:
                tag = ".".join((*key[:-1], VARIANTS[key[:-1]].tag))
                text = f"has no effect with {tag}={shown(variant)}; leave it out"
            elif "; known: " in text:
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
        problems.append((".".join(key), text))
    return problems


def _place(location: tuple[int | str, ...], section: KeyPath) -> tuple[KeyPath, str]:
    """The key in the YAML, and the variant of its section: pydantic inserts that after the section's key."""
    key, parts, variant = section, iter(map(str, location)), ""
    while True:
        if key in VARIANTS:
            variant = next(parts, variant)
        part = next(parts, None)
        if part is None:
            return key, variant
        key = (*key, part) if part != "[key]" else key


def _unknown_value(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    if len(names) == 1:
        return f"must be '{names[0]}' in this version, not {_shown(value)}"
    return f"unknown value {_shown(value)}{did_you_mean(str(value), names)}"


def _shown(value: Any) -> str:
    """A value as it can be written in the YAML, cut if it is long."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(json.dumps(value))
