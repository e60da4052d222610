"""The tables of backbones and weights, from the probes of benchmarks/support_matrix.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page_table import table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "support_matrix.json"
COLUMNS = ("load", "select", "train", "export", "resume")


def backbones_part() -> str:
    return _part("backbones", "backbone")


def weights_part() -> str:
    return _part("weights", "weights")


def _part(name: str, title: str) -> str:
    document = json.loads(RESULTS.read_text())
    rows = [
        [f"`{key}`", *(_cell(found[column]) for column in COLUMNS)] for key, found in document[name].items()
    ]
    return table([title, *COLUMNS], rows)


def _cell(result: Any) -> str:
    """yes, or the reason why not; of exports those that work, and the reason for each other one."""
    if not isinstance(result, dict):
        return "yes" if result is True else str(result)
    working = ", ".join(name for name, value in result.items() if value is True)
    others = [f"{name}: {_reason(value)}" for name, value in result.items() if value is not True]
    return f"{working}; not {', not '.join(others)}"


def _reason(message: str) -> str:
    """The part of a message of `export` that names what the other program has not."""
    return message.partition("cannot be this model: ")[2].partition("; ")[0] or message
