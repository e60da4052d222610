"""The reference of settings: each key with its values and its default from the dataclasses of a recipe.

The comments of the recipe `custom` state the meaning of most keys, the comments of the dataclasses the origin
of values.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from page_table import table
from pydantic import TypeAdapter, ValidationError
from setting_notes import explanation

from everest.config.settings import Recipe

LARGE = 1000  # limits from it on are for safety, and of no interest
UNITS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
}


@dataclass(frozen=True)
class Section:
    """The keys of one dataclass, and where in a recipe they may be."""

    settings: type
    places: list[str]


def settings_part() -> str:
    """A heading and a table for every section of a recipe, in the order of the file."""
    texts = [_keys("Top level", Recipe, [""], nested=frozenset(section.places[0] for section in sections()))]
    for section in sections():
        kind = _kind(section.settings)
        places = ", ".join(f"`{place}`" for place in section.places)
        texts.append(_keys(f"{places}{f': `{kind}`' if kind else ''}", section.settings, section.places))
    return "\n\n".join(texts)


def sections() -> list[Section]:
    """Every dataclass below a recipe once, in the order of the file."""
    places: dict[type, list[str]] = {}

    def visit(settings: type, place: str) -> None:
        hints = get_type_hints(settings, include_extras=True)
        for key in (each.name for each in fields(settings)):
            for inner in _dataclasses(hints[key]):
                where = f"{place}.{key}" if place else key
                places.setdefault(inner, [])
                if where not in places[inner]:
                    places[inner].append(where)
                visit(inner, where)

    visit(Recipe, "")
    return [Section(settings, where) for settings, where in places.items()]


def _dataclasses(hint: Any) -> Iterator[type]:
    """The dataclasses of a type: itself, or those in a union or an annotation."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    else:
        for part in get_args(hint):
            yield from _dataclasses(part)


def _kind(settings: type) -> str | None:
    """The name of a strategy, a kind of targets, an objective or a loss."""
    names = (getattr(settings, key, None) for key in ("strategy", "kind", "objective", "loss"))
    return next((name for name in names if isinstance(name, str)), None)


def _keys(title: str, settings: type, places: list[str], *, nested: frozenset[str] = frozenset()) -> str:
    hints = get_type_hints(settings, include_extras=True)
    rows = []
    for each in fields(settings):
        if each.name in nested or getattr(settings, each.name, None) == _kind(settings) is not None:
            continue
        has_sections = any(True for _ in _dataclasses(hints[each.name]))
        kind = "a section of its own" if has_sections else type_text(hints[each.name])
        note = explanation(settings, each.name, str(each.type), places)
        rows.append([f"`{each.name}`", kind, _default(each), note])
    about = (inspect.getdoc(settings) or "").split("\n\n")[0].replace("\n", " ")
    return f"## {title}\n\n{about}\n\n{table(['key', 'values', 'default', 'meaning or origin'], rows)}"


def type_text(hint: Any) -> str:
    """The values that a type accepts, in words: from the schema of pydantic, or from the error of a check."""
    # A validator of everest's own leaves no schema: then that of the type below it.
    schema = TypeAdapter(hint).json_schema() or TypeAdapter(get_args(hint)[0]).json_schema()
    checked = _requirement(hint)
    optional = "`null` or " if {"type": "null"} in schema.get("anyOf", []) else ""
    return f"{optional}{checked}" if checked else _schema_text(schema)


def _requirement(hint: Any) -> str | None:
    """The text of the error for a value that no setting accepts, if a check of everest's own writes it."""
    for wrong in ("no value of a setting", object()):
        try:
            TypeAdapter(hint).validate_python(wrong)
        except ValidationError as error:
            for problem in error.errors():
                if problem["type"] == "value_error":
                    return problem["msg"].removeprefix("Value error, must be ")
    return None


def _schema_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(
            _schema_text(part)
            for part in sorted(schema["anyOf"], key=lambda part: part.get("type") != "null")
        )
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_yaml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"[{', '.join(_schema_text(item) for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of: {_schema_text(schema['items'])}"
    if schema.get("type") == "object":
        return f"mapping of names to: {_schema_text(schema['additionalProperties'])}"
    return UNITS[schema["type"]] + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    parts = []
    if least is not None:
        parts.append(f"from {least:g}")
    if above is not None:
        parts.append(f"above {above:g}")
    if most is not None and most < LARGE:
        parts.append(f"to {most:g}")
    if below is not None and below < LARGE:
        parts.append(f"{'and ' if parts else ''}below {below:g}")
    return f" {' '.join(parts)}" if parts else ""


def _default(each: Field[Any]) -> str:
    if each.default is MISSING and each.default_factory is MISSING:
        return "required"
    value = each.default_factory() if each.default_factory is not MISSING else each.default
    if is_dataclass(value):
        kind = _kind(type(value))
        return f"`{kind}`" if kind else ""
    return f"`{_yaml(value)}`" if value != "" else ""


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
