"""The comments that explain settings: in the recipe `custom`, the dataclasses of recipes and named types."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType

from everest.config import heads, values

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = 60  # letters of a meaning that also explains the values of its key
ORIGIN = re.compile(r"Table|§|released|paper|\bours\b|our choice|\[[PM]\]|[A-Z]\w+ et al\.|VideoMAE")
SOURCES = {"[P]": "(LVMAE paper)", "[M]": "(MAGVIT's code)"}


def explanation(settings: type, key: str, annotation: str, places: list[str]) -> str:
    """The meaning of a key and the origin of its default, as the page shows them.

    Args:
        annotation: the source of the type of the key.
        positions: of the settings in a recipe, such as pretrain.selection and finetune.selection.
    """
    keys = [f"{place}.{key}".lstrip(".") for place in places]
    keys += [name.replace("finetune.", "pretrain.") for name in keys]  # which states what both stages have
    meaning = next((note for name in keys if (note := of_custom().get(name))), "")
    note = notes(settings).get(key, "")
    texts = [meaning, note if not meaning or ORIGIN.search(note) else "", alias_note(annotation, meaning)]
    return as_sentence("; ".join(filter(None, texts)))


@cache
def notes(settings: type) -> dict[str, str]:
    """The comments of each key, of the class that defines it last, else its lines in the docstring."""
    notes: dict[str, str] = {}
    for each in reversed(settings.__mro__):
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


def alias_note(annotation: str, meaning: str) -> str:
    """The comments of the named types of an annotation, unless a long meaning already explains the values."""
    names = re.findall(r"\w+", annotation) if len(meaning) <= EXPLAINED else []
    return " ".join(_alias_notes()[name] for name in names if name in _alias_notes())


@cache
def of_custom() -> dict[str, str]:
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
        if len(path) > 1:  # the comment above the first key is about the file
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


def as_sentence(note: str) -> str:
    """A comment as the page shows it: None is null in YAML, and names of modules are code."""
    for mark, source in SOURCES.items():
        note = note.replace(mark, source)
    note = re.sub(r"\bNone\b", "`null`", note)
    note = re.sub(r"(?<![`\w])(everest(?:\.\w+)+)", r"`\1`", note)
    return note.replace("*", r"\*").replace("<", "&lt;")
