"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

GIB: Final = 2**30
State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: absent: optional and not there. warning: works, with trouble to expect. broken: needed.
        mend: what to do about it; None where all is well.
    """

    name: str
    state: State
    found: str
    mend: str | None = None


def first_line(error: Exception) -> str:
    """The beginning of an error's message, which may be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
