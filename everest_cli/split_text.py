"""The notices and counts that `everest prepare split` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from everest.errors import first_names
from everest.system.text import counted
from everest_cli.output import say

FEW_VIDEOS: Final = 20  # our choice: one video more or less is 5 %
MOST_NAMES: Final = 20  # our choice: groups that a line names
LARGER: Final = {2: "60/40", 3: "60/20/20"}  # our choice: shares for few videos, by the number of lists


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
    videos = {name: row["videos"] for name, row in document["lists"].items()}
    warning = few_videos(videos, document["shares"], unit=unit)
    if warning is not None:
        say(warning)
    say(f"lists: {document['folder']}")
    if document["advice"]:
        say(document["advice"])


def few_videos(videos: Mapping[str, int], shares: Mapping[str, float], *, unit: str) -> str | None:
    """Return a warning of validation and test lists with few videos; None if there are none.

    Args:
        videos: or windows, of each list.
        unit: video or window.
        shares: that each list was to have; larger ones are advised if there are any.
    """
    few = {name: count for name, count in videos.items() if name != "train" and count < FEW_VIDEOS}
    if not few:
        return None
    larger = LARGER[len(shares)]
    share = int(larger.rpartition("/")[2]) / 100
    helps = any(shares[name] < share for name in few)
    advice = f"; `everest prepare split --shares {larger}` gives more" if helps else ""
    named = ", ".join(f"{name} has {counted(count, unit)}" for name, count in few.items())
    return f"warning: {named}: few for a measurement{advice}"


def _range(row: dict[str, Any]) -> str:
    """The numbers of a list, for the labels of a regression."""
    facts = row.get("numbers")
    if not facts:
        return ""
    return f", labels from {facts['min']:g} to {facts['max']:g}, mean {facts['mean']:g}"
