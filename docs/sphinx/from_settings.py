"""The reference of settings: each key with its values and its default from the dataclasses of a recipe.

The comments of the recipe `custom` state the meaning of most keys, the comments of the dataclasses the origin
of values.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, get_args, get_type_hints

from markdown import table
from pydantic import TypeAdapter, ValidationError

from everest.config import heads, values
from everest.config.settings import Recipe
from everest.config.sizes import TokenizerConfig
from everest.config.tokenizer import TokenizerSettings

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = 60  # letters of a meaning that also explains the values of its key
LARGE = 1000  # limits from it on are for safety, and of no interest
ORIGIN = re.compile(r"Table|§|released|paper|\bours\b|our choice|\[[PM]\]|[A-Z]\w+ et al\.|VideoMAE")
SOURCES = {"[P]": "(LVMAE paper)", "[M]": "(MAGVIT's code)"}
NETWORKS = {TokenizerSettings: (TokenizerConfig,)}  # whose comments explain keys of the same names
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
        for key, hint in get_type_hints(settings, include_extras=True).items():
            for inner in _dataclasses(hint):
                where = f"{place}.{key}" if place else key
                places.setdefault(inner, []).append(where)
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
    """The name of a strategy or of a kind of targets."""
    return next(
        (
            getattr(settings, key)
            for key in ("strategy", "kind")
            if isinstance(getattr(settings, key, None), str)
        ),
        None,
    )


def _keys(title: str, settings: type, places: list[str], *, nested: frozenset[str] = frozenset()) -> str:
    hints = get_type_hints(settings, include_extras=True)
    notes = _notes(settings)
    rows = []
    for each in fields(settings):
        if each.name in nested or getattr(settings, each.name, None) == _kind(settings) is not None:
            continue
        has_sections = any(True for _ in _dataclasses(hints[each.name]))
        kind = "a section of its own" if has_sections else type_text(hints[each.name])
        keys = [f"{place}.{each.name}".lstrip(".") for place in places]
        keys += [key.replace("finetune.", "pretrain.") for key in keys]  # which states what both stages have
        meaning = next((note for key in keys if (note := _of_custom().get(key))), "")
        note = notes.get(each.name, "")
        texts = [
            meaning,
            note if not meaning or ORIGIN.search(note) else "",
            _alias_note(str(each.type), meaning),
        ]
        rows.append([f"`{each.name}`", kind, _default(each), _as_sentence("; ".join(filter(None, texts)))])
    about = (inspect.getdoc(settings) or "").split("\n\n")[0].replace("\n", " ")
    return f"## {title}\n\n{about}\n\n{table(['key', 'values', 'default', 'meaning or origin'], rows)}"


def type_text(hint: Any) -> str:
    """The values that a type accepts, in words: from the schema of pydantic, or from the error of a check."""
    schema = TypeAdapter(hint).json_schema()
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
                if problem["type"] == "literal_error" and "enum" not in str(TypeAdapter(hint).json_schema()):
                    return problem["ctx"]["expected"].replace("'", "`")
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


@cache
def _notes(settings: type) -> dict[str, str]:
    """The comments of each key, of the class that defines it last, else its lines in the docstring."""
    notes: dict[str, str] = {}
    for each in reversed([*settings.__mro__, *NETWORKS.get(settings, ())]):
        if is_dataclass(each):
            described = re.findall(
                r"^    (\w+): (.*(?:\n     .*)*)", inspect.getdoc(each) or "", flags=re.MULTILINE
            )
            notes |= {key: " ".join(text.split()) for key, text in described}
            notes |= {key: note for key, note in comments(dedent(inspect.getsource(each))).items() if note}
    return notes


@cache
def _alias_notes() -> dict[str, str]:
    """The comments of the named types of values."""
    modules: list[ModuleType] = [values, heads]
    return {
        name: note for module in modules for name, note in comments(inspect.getsource(module)).items() if note
    }


def _alias_note(annotation: str, meaning: str) -> str:
    """The comments of the named types of an annotation, unless a long meaning already explains the values."""
    names = re.findall(r"\w+", annotation) if len(meaning) <= EXPLAINED else []
    return " ".join(_alias_notes()[name] for name in names if name in _alias_notes())


@cache
def _of_custom() -> dict[str, str]:
    """The comment of each `section.key` of the recipe `custom`: on the lines above it, and at its end."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in (ROOT / "recipes" / "custom.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("#") or not text:
            above = [*above, text.lstrip("# ")] if text else []
            continue
        indent = len(line) - len(line.lstrip())
        path = [(before, key) for before, key in path if before < indent]
        path.append((indent, text.partition(":")[0]))
        comment = re.search(r"\s#\s(.*)", text)
        found[".".join(key for _, key in path)] = " ".join([*above, *([comment[1]] if comment else [])])
        above = []
    return found


def comments(source: str) -> dict[str, str]:
    """The comment of each name that a class or a module defines: on the lines above it, and at its end."""
    lines = {
        item.start[0]: (item.string.lstrip("# "), item.line.lstrip().startswith("#"))
        for item in tokenize.generate_tokens(io.StringIO(source).readline)
        if item.type == tokenize.COMMENT
    }
    found = {}
    body = ast.parse(source).body
    for node in body[0].body if isinstance(body[0], ast.ClassDef) else body:
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if not isinstance(target, ast.Name):
            continue
        first = node.lineno
        while lines.get(first - 1, ("", False))[1]:
            first -= 1
        above = [lines[number][0] for number in range(first, node.lineno)]
        behind = [
            lines[number][0] for number in range(node.lineno, (node.end_lineno or 0) + 1) if number in lines
        ]
        found[target.id] = " ".join([*above, *behind])
    return found


def _as_sentence(note: str) -> str:
    """A comment as the page shows it: None is null in YAML, and names of modules are code."""
    for mark, source in SOURCES.items():
        note = note.replace(mark, source)
    note = re.sub(r"\bNone\b", "`null`", note)
    note = re.sub(r"(?<![`\w])(everest(?:\.\w+)+)", r"`\1`", note)
    return note.replace("*", r"\*").replace("<", "&lt;")
