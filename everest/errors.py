"""Errors that a user can cause: one line each, with the exit code that scripts rely on.

Codes: 2 usage or recipe, 3 diverged, 4 data, 5 environment (memory, device, package, disk), 6 checkpoint;
69 the failure of another process of a run (everest.system.launch), or of one of several jobs;
128 + n a signal.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

MAX_SHOWN: Final = 80  # letters of a value in a message
MAX_SHOWN_OF_PATH: Final = 300
MAX_PROBLEMS: Final = 10  # in a message
# What to try if the memory of a device or machine is too small for a run.
LESS_MEMORY: Final = (
    "try a smaller train.micro_batch (between views pretrain.batch_size), train.checkpointing=true or "
    "train.precision=bf16, or smaller clips"
)
SMALLER_UPDATES: Final = "lower base_lr or set train.clip_grad"  # what to try if a run diverges


class UserError(Exception):
    """A failure that a user can fix. The message states what is wrong, where, and how to fix it."""

    exit_code: int = 2


class RecipeError(UserError):
    """A recipe, option or path that is not valid."""

    exit_code = 2


class OptionError(RecipeError):
    """An option that is not valid. The message begins with its name; a command puts `--` before it."""


class DivergedError(UserError):
    """A loss or gradient that is not finite, or collapsed features of a run between views."""

    exit_code = 3


class DataError(UserError):
    """A list, label or video that cannot be used."""

    exit_code = 4


class EnvironmentProblem(UserError):
    """The machine cannot do it: memory, device, missing package, disk."""

    exit_code = 5


class CheckpointError(UserError):
    """A checkpoint that is damaged, of the wrong kind or of another shape."""

    exit_code = 6


def shorten(value: object, *, most: int = MAX_SHOWN) -> str:
    """A user's value for a message: on one line, without its middle if it has more than `most` letters."""
    text = str(value)
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[5 - most // 2 :]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_per_line(problems: Iterable[str]) -> str:
    """Each problem once, one per line; the last line counts those beyond `MAX_PROBLEMS`."""
    lines = list(dict.fromkeys(problems))
    further = len(lines) - MAX_PROBLEMS
    return "\n".join(lines if further <= 0 else [*lines[:MAX_PROBLEMS], f"and {further} more problems"])


def join_first(names: Sequence[object], most: int = 5) -> str:
    """The first `most` names, joined by commas."""
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'base_lr'?"` if a known name is similar, else the known names (up to 20)."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"; did you mean '{close[0]}'?"
    return f"; known: {join_first(names, 20)}" if names else ""


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, each with both values."""
    return [
        f"{key} ({json.dumps(before.get(key))}, now {json.dumps(now.get(key))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def unknown_name(key: str, name: str, known: Iterable[str]) -> RecipeError:
    """The error for a `name` that is not among the values of `key`."""
    return RecipeError(f"{key}: unknown name '{shorten(name)}'{did_you_mean(name, known)}")
