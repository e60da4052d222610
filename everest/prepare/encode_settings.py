"""The options of `everest prepare encode`, apart from the libraries that encode: help needs only these."""

from __future__ import annotations

from dataclasses import dataclass

from everest.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How videos are encoded. All defaults are our choice."""

    short_side: int = 256  # pixels, for crops of 224; smaller videos keep their size
    gop: int = 12  # frames between keyframes; with 250, a clip costs 1.5 to 2.1 times as much
    crf: int = 18  # x264's quality; visually close to the source
    fast_decode: bool = False  # no features that are slow to decode: 1.3 times as fast, a little larger


@dataclass(frozen=True, slots=True)
class JobShare:
    """Which part of the videos a machine encodes: its number from 1, and the number of parts."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> JobShare:
        """Parse `I/N`."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise RecipeError(f"--shard {text}: give I/N with I from 1 to N, as 1/4 to 4/4 for four machines")
        return cls(int(first), int(second))
