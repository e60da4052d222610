"""Counts of things in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 video`, `2 videos`, `1 class`, `2 classes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
