"""Counts outcomes, and gathers failures by their cause."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from .outcome import Outcome


@dataclass
class Report:
    """The outcomes of a run of the suite."""

    seconds: float = 0.0  # of the whole run
    _counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _slowest: dict[str, Outcome] = field(default_factory=dict)
    _peaks: Counter[str] = field(default_factory=Counter)
    _failures: dict[tuple[str, str], list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    def add(self, outcome: Outcome) -> int:
        """Count an outcome; returns the number of failures with its cause so far."""
        kind = outcome.id.kind
        self._counts[kind]["ended" if outcome.code is None else str(outcome.code)] += 1
        self._seconds[kind] += outcome.seconds
        self._peaks[kind] = max(self._peaks[kind], outcome.peak_bytes)
        if kind not in self._slowest or outcome.seconds > self._slowest[kind].seconds:
            self._slowest[kind] = outcome
        if not outcome.problems:
            return 0
        same = self._failures[kind, outcome.key]
        same.append(outcome)
        return len(same)

    @property
    def failed(self) -> int:
        return sum(map(len, self._failures.values()))

    def to_dict(self) -> dict[str, Any]:
        kinds = {
            kind: {
                "cases": counts.total(),
                "codes": dict(sorted(counts.items())),
                "failed": sum(len(same) for (name, _), same in self._failures.items() if name == kind),
                "cases_per_second": round(counts.total() / max(self._seconds[kind], 1e-9), 1),
                "slowest_seconds": round(self._slowest[kind].seconds, 2),
                "slowest": self._slowest[kind].id.command,
                "peak_mib": self._peaks[kind] >> 20,
            }
            for kind, counts in self._counts.items()
        }
        failures = [
            {
                "kind": kind,
                "count": len(same),
                "cause": cause,
                "problems": same[0].problems,
                "command": same[0].argv,
                "stderr": same[0].stderr[-600:],
                "reproduce": [outcome.id.command for outcome in same[:3]],
            }
            for (kind, cause), same in sorted(self._failures.items(), key=lambda item: -len(item[1]))
        ]
        cases = sum(counts.total() for counts in self._counts.values())
        return {"seconds": round(self.seconds, 1), "cases": cases, "failed": self.failed} | {
            "kinds": kinds,
            "failures": failures,
        }

    def text(self) -> str:
        """A line for each kind, then each cause of failures with the command that shows it."""
        document = self.to_dict()
        lines = [f"{document['cases']} cases in {document['seconds']} s, {document['failed']} failed"]
        for kind, row in document["kinds"].items():
            codes = ", ".join(f"{code}: {count}" for code, count in row["codes"].items())
            lines.append(
                f"{kind:12} {row['cases']:5} cases, {row['failed']:4} failed, "
                f"{row['cases_per_second']:6.1f} cases/s of a core, slowest {row['slowest_seconds']} s, "
                f"peak {row['peak_mib']} MiB; exit codes {codes}"
            )
        for failure in document["failures"]:
            lines += ["", f"{failure['kind']}: {failure['count']} x {failure['cause']}"]
            lines += [f"  {problem}" for problem in failure["problems"]]
            lines += [f"  {failure['reproduce'][0]}"]
        return "\n".join(lines)
