"""The claims of evidence/claims.yaml, and when a difference supports one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.config.yaml import read_yaml
from everest.sweep.report import make_report

FILE: Final = Path(__file__).with_name("evidence") / "claims.yaml"
MARGIN: Final = 3.0  # points, our choice: a smaller loss counts as none
UNRESOLVED: Final = "not resolvable at this size"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about two arms of a part: that the first is better, or that it is not worse."""

    part: str
    arms: tuple[str, str]
    text: str
    origin: str
    better: bool = True  # otherwise: not worse by MARGIN
    metric: str | None = None  # of the results; None: that of the part

    def verdict(self, low: float, high: float) -> str:
        """The meaning of the 95 % interval of the first arm minus the second."""
        least = 0.0 if self.better else -MARGIN
        if low > least:
            return "seen"
        return "the opposite is seen" if high < least else UNRESOLVED

    def difference(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The first arm minus the second; None if one of them has no results."""
        measured = {arm["arm"] for arm in results["arms"]}
        if not measured.issuperset(self.arms):  # a labeled set was left out
            return None
        report = make_report(results, metric=self.metric, against=self.arms[1])
        return next(arm["difference"] for arm in report["arms"] if arm["arm"] == self.arms[0])

    def of_set(self, name: str) -> Claim:
        """The claim about a labeled set of real clips."""
        return replace(self, arms=tuple(f"{arm}, {name}" for arm in self.arms))


def without_interval(difference: dict[str, Any]) -> str:
    """Why a difference has no interval."""
    return "one seed" if len(difference["seeds"]) == 1 else "all seeds alike"


_ROWS: Final[Any] = read_yaml(FILE.read_text(), FILE.name)
CLAIMS: Final = tuple(Claim(**{**row, "arms": tuple(row["arms"])}) for row in _ROWS["claims"])
CLIPS_CLAIMS: Final = tuple(Claim(**{**row, "arms": tuple(row["arms"])}) for row in _ROWS["clips"])
