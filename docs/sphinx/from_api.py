"""The reference of the Python API: signatures and docstrings of everest's public names."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import everest
from everest import errors

ERRORS = (
    *("UserError", "RecipeError", "OptionError", "DivergedError"),
    *("DataError", "EnvironmentProblem", "CheckpointError"),
)
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):\n", re.MULTILINE)


def api_part() -> str:
    """Functions and classes of `everest`, then its modules, then the errors."""
    names = {name: getattr(everest, name) for name in everest.__all__}
    modules = {name: value for name, value in names.items() if isinstance(value, ModuleType)}
    parts = [
        part
        for name, value in names.items()
        if name not in modules
        for part in _with_methods(f"everest.{name}", value, level=2)
    ]
    for name, module in modules.items():
        parts += [f"## everest.{name}", _text(module)]
        for member, value in vars(module).items():
            is_ours = (getattr(value, "__module__", None) or "").startswith("everest.")
            if is_ours and member in module.__all__ and member not in names:
                parts += _with_methods(f"{name}.{member}", value, level=3)
    parts += ["## Errors", _text(errors)]
    for name in ERRORS:
        error = getattr(errors, name)
        parts.append(f"- `{name}`, exit code {error.exit_code}: {inspect.getdoc(error)}")
    return "\n\n".join(parts)


def _with_methods(name: str, value: Any, *, level: int) -> Iterator[str]:
    """The heading, signature and text of a function or class, and of the public methods of a class."""
    yield f"{'#' * level} {name}"
    if callable(value):
        yield f"```python\n{_call(name.removeprefix('everest.'), value)}\n```"
    yield _text(value)
    for method, member in vars(value).items() if inspect.isclass(value) else ():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
            yield from _with_methods(f"{name}.{method}", function, level=level + 1)


def _call(name: str, value: Any) -> str:
    """The call of a function or class, one parameter a line if it is long."""
    signature = inspect.signature(value)
    result = signature.return_annotation
    returned = "" if result is signature.empty else f" -> {_type(result)}"
    parts, is_keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            is_keyword = True
            parts.append("*")
        hint = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        parts.append(f"{stars}{parameter.name}{hint}{default}")
    line = f"{name}({', '.join(parts)}){returned}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){returned}"


def _value(default: Any) -> str:
    return default.__name__ if inspect.isfunction(default) else repr(default)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _text(value: Any) -> str:
    """A docstring as Markdown: the entries of its sections are lists."""
    lead, *sections = SECTION.split(inspect.getdoc(value) or "")
    parts = [lead.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        body = textwrap.dedent(body).strip()
        if title == "Returns":
            parts.append(f"*Returns:* {body}")
            continue
        entries = re.split(r"\n(?=\S)", body)
        pairs = (entry.partition(":") for entry in entries)
        named = "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, _, text in pairs)
        parts += [f"*{title}:*", named]
    return "\n\n".join(filter(None, parts))
