"""The result of one check of a machine."""

from __future__ import annotations

from collections.abc import Sequence
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


def verdict(results: Sequence[CheckResult]) -> str:
    """The results of all checks in a sentence: whether everest works, on which device, and where to start."""
    broken = [result.name for result in results if result.state == "broken"]
    warned = [result.name for result in results if result.state == "warning"]
    if broken:
        return f"everest does not work on this machine: fix {', '.join(broken)} first."
    gpus = sum(result.name.startswith("GPU ") and result.state == "ok" for result in results)
    if gpus:
        device = f"on {gpus} GPU{'s' if gpus > 1 else ''}"
    elif any(result.name == "MPS" for result in results):
        device = "on the GPU of this Mac, by --gpus mps"
    else:
        device = "on the CPU: begin with `everest recipes suggest VIDEOS --output my.yaml`"
    sentence = f"everest works on this machine, {device}"
    if not warned:
        return f"{sentence}."
    return f"{sentence}; {len(warned)} warning{'s' if len(warned) > 1 else ''}: {', '.join(warned)}."


def at_least(name: str, found: str, enough: bool, fix: str) -> CheckResult:
    """A result that is a warning with its fix unless there is `enough` of it."""
    return CheckResult(name, "ok", found) if enough else CheckResult(name, "warning", found, fix)


def first_line(error: Exception) -> str:
    """The first line of an error's message, which may be pages long."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
