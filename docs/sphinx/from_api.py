"""The reference of the Python API: everest's public names, for autodoc."""

from __future__ import annotations

import inspect

import everest

# Spelled in the first way; the page has the other one.
LEFT_OUT = ("normalise",)


def api_part() -> str:
    """Functions and classes of `everest`, then its modules."""
    names = {name: getattr(everest, name) for name in everest.__all__ if name not in LEFT_OUT}
    modules = {name: value for name, value in names.items() if inspect.ismodule(value)}
    lines = []
    for name, value in names.items():
        if name not in modules:
            lines += [
                f"## everest.{name}",
                _rst(f"auto{'class' if inspect.isclass(value) else 'function'}", f"everest.{name}"),
            ]
    for name, module in modules.items():
        lines += [
            f"## everest.{name}",
            _rst("automodule", module.__name__, "members", "exclude-members: TokenSelection"),
        ]
    lines += [
        "## Errors",
        _rst(
            "automodule",
            "everest.errors",
            "members: UserError, RecipeError, DivergedError, DataError, EnvironmentProblem, CheckpointError",
        ),
    ]
    return "\n\n".join(lines)


def _rst(directive: str, name: str, *options: str) -> str:
    given = "".join(f"\n   :{option.partition(':')[0]}:{option.partition(':')[2]}" for option in options)
    return f"```{{eval-rst}}\n.. {directive}:: {name}{given}\n```"
