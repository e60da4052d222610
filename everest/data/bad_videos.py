"""Unreadable videos: each is reported once, all are counted, and too many of them end the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from everest.errors import DataError

MIN_BAD_SAMPLES = 5  # heuristic: a handful of broken files never ends a run


@dataclass(eq=False)
class BadVideos:
    """Counts the unreadable videos of a run, over all processes and resumes."""

    max_bad: float  # the largest fraction of the requested samples that may be unreadable (`data.max_bad`)
    num_samples: int = 0  # samples requested
    num_bad: int = 0  # unreadable samples; a broken video counts each time it is requested
    reasons: dict[str, str] = field(default_factory=dict)  # why each video is unreadable, by its path

    def add(self, *, num_samples: int, failed_reads: Iterable[Sequence[tuple[str, str]]]) -> list[str]:
        """Count a step; return the lines to show. `failed_reads` has (path, reason) pairs per sample."""
        self.num_samples += num_samples
        lines = []
        for reads in failed_reads:
            self.num_bad += 1
            for path, reason in reads:
                if path not in self.reasons:
                    self.reasons[path] = reason
                    lines.append(f"cannot read {path}: {reason}; another video takes its place")
        return lines

    def check(self, *, any_failed: bool) -> None:
        """Raise DataError if the last step exceeded the limit; after a repair, the run can be resumed."""
        if any_failed and self.num_bad >= MIN_BAD_SAMPLES and self.num_bad > self.max_bad * self.num_samples:
            first = "; ".join(f"{path} ({reason})" for path, reason in list(self.reasons.items())[:3])
            raise DataError(
                f"{self.num_bad} of {self.num_samples} samples could not be read, more than "
                f"data.max_bad={self.max_bad} allows: {first}; repair or remove them (bad_videos.csv lists "
                f"all {len(self.reasons)})"
            )

    def counts(self) -> dict[str, int]:
        """The counts that a checkpoint keeps, as `restore` takes them."""
        return {"asked": self.num_samples, "bad": self.num_bad}

    def restore(self, counts: dict[str, int], reasons: dict[str, str]) -> None:
        """Continue from the counts of an earlier part of the run."""
        self.num_samples, self.num_bad = counts["asked"], counts["bad"]
        self.reasons = dict(reasons)


def refuse_too_many(skipped: Sequence[tuple[str, str]], *, requested: int, max_bad: float) -> None:
    """Raise DataError if the (path, reason) pairs `skipped` exceed the fraction `max_bad` of `requested`."""
    if len(skipped) == requested or (len(skipped) >= MIN_BAD_SAMPLES and len(skipped) > max_bad * requested):
        path, reason = skipped[0]
        raise DataError(
            f"{len(skipped)} of {requested} videos could not be read, more than data.max_bad={max_bad} "
            f"allows: first {path} ({reason})"
        )
