"""The result of one check of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

GIB: Final = 2**30
State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        state: absent: optional and not there. warning: works, but problems are likely. broken: needed.
        fix: the remedy; None if the check passed.
    """

    name: str
    state: State
    found: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The values of `everest doctor --json`."""
        return {"name": self.name, "state": self.state, "found": self.found, "fix": self.fix}


def at_least(name: str, found: str, enough: bool, fix: str) -> CheckResult:
    """A result that is a warning with its fix unless there is `enough` of it."""
    return CheckResult(name, "ok", found) if enough else CheckResult(name, "warning", found, fix)


def first_line(error: Exception) -> str:
    """The first line of an error's message, which may be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
