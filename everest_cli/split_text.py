"""The notices and counts that `everest prepare split` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from everest.errors import first_names
from everest.system.text import counted
from everest_cli.output import say

FEW_VIDEOS: Final = 20  # our choice: one video more or less is 5 %
LARGER: Final = {2: "60/40", 3: "60/20/20"}  # our choice: shares for few videos, by the number of lists


def print_split(document: dict[str, Any], *, group: str | None) -> None:
    """Print the notices and the counts of a split to stderr."""
    for text in document["notices"]:
        say(text)
    every_class = {name for row in document["lists"].values() for name in row["classes"]}
    for name, row in document["lists"].items():
        of_groups = "" if group is None else f" of {counted(row['groups'], 'group')}"
        say(f"{name}: {counted(row['videos'], 'video')} ({row['share']:.1%}){of_groups}{_range(row)}")
        empty = sorted(every_class - row["classes"].keys())
        if empty:
            reason = f"which have too few {'videos' if group is None else 'groups'} to be in every list"
            say(f"{name} has no video of {counted(len(empty), 'class')}, {reason}: {first_names(empty)}")
    videos = {name: row["videos"] for name, row in document["lists"].items()}
    warning = few_videos(videos, document["shares"])
    if warning is not None:
        say(warning)
    say(f"lists: {document['folder']}")
    if document["advice"]:
        say(document["advice"])


def few_videos(videos: Mapping[str, int], shares: Mapping[str, float]) -> str | None:
    """Return a warning of validation and test lists with few videos; None if there are none.

    Args:
        videos: of each list.
        shares: that each list was to have; larger ones are advised if there are any.
    """
    few = {name: count for name, count in videos.items() if name != "train" and count < FEW_VIDEOS}
    if not few:
        return None
    larger = LARGER[len(shares)]
    share = int(larger.rpartition("/")[2]) / 100
    helps = any(shares[name] < share for name in few)
    advice = f"; `everest prepare split --shares {larger}` gives more" if helps else ""
    named = ", ".join(f"{name} has {counted(count, 'video')}" for name, count in few.items())
    return f"warning: {named}: few for a measurement{advice}"


def _range(row: dict[str, Any]) -> str:
    """The numbers of a list, for the labels of a regression."""
    facts = row.get("numbers")
    if not facts:
        return ""
    return f", labels from {facts['min']:g} to {facts['max']:g}, mean {facts['mean']:g}"
