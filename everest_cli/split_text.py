"""The notices and counts that `everest prepare split` prints."""

from __future__ import annotations

from typing import Any, Final

from everest.errors import first_names
from everest.system.text import counted
from everest_cli.output import say

MOST_NAMES: Final = 20  # our choice: groups that a line names


def print_split(document: dict[str, Any], *, group: str | None) -> None:
    """Print the notices and the counts of a split to stderr."""
    for text in document["notices"]:
        say(text)
    unit = document["unit"]
    every_class = {name for row in document["lists"].values() for name in row["classes"]}
    for name, row in document["lists"].items():
        of_groups = ""
        if row["group_names"]:
            names = first_names(row["group_names"], MOST_NAMES)
            of_groups = f" of {counted(row['groups'], 'group')}: {names}"
        say(f"{name}: {counted(row['videos'], unit)} ({row['share']:.1%}){_range(row)}{of_groups}")
        empty = sorted(every_class - row["classes"].keys())
        if empty:
            reason = f"which have too few {unit if group is None else 'group'}s to be in every list"
            say(f"{name} has no {unit} of {counted(len(empty), 'class')}, {reason}: {first_names(empty)}")
    say(f"lists: {document['folder']}")
    if document["advice"]:
        say(document["advice"])


def _range(row: dict[str, Any]) -> str:
    """The numbers of a list, for the labels of a regression."""
    facts = row.get("numbers")
    if not facts:
        return ""
    return f", labels from {facts['min']:g} to {facts['max']:g}, mean {facts['mean']:g}"
