"""The names of the kinds of annotation files; short, because the command line imports it before torch."""

from __future__ import annotations

from typing import Final, Literal, get_args

from everest.errors import RecipeError, did_you_mean, shown

Kind = Literal[
    "csv",
    "boris",
    "boris-events",
    "boris-aggregated",
    "elan",
    "label-studio",
    "activitynet",
    "frames",
    "vtt",
    "srt",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


def known_kind(name: str) -> Kind:
    """The kind of a name; RecipeError if there is none."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise RecipeError(f"unknown kind of annotations '{shown(name)}'{did_you_mean(name, KINDS)}")
