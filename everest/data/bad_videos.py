"""Videos that could not be read: named once, counted, and too many of them end the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from everest.errors import DataError

AT_LEAST = 5  # ours: a handful of broken files never ends a run


class BadVideos:
    """The count of a run, over all processes and resumes.

    Args:
        max_bad: the share of the samples asked for that may be bad (`data.max_bad`).
    """

    def __init__(self, max_bad: float) -> None:
        self.max_bad = max_bad
        self.asked = 0  # samples
        self.bad = 0  # samples, so a broken video counts each time it was due
        self.reasons: dict[str, str] = {}  # path to reason

    def add(self, *, asked: int, failed: Iterable[Sequence[tuple[str, str]]]) -> list[str]:
        """Count a step; `failed` has the tries (path, reason) of each bad sample. Returns lines to show."""
        self.asked += asked
        fresh = []
        for tries in failed:
            self.bad += 1
            for path, reason in tries:
                if path not in self.reasons:
                    self.reasons[path] = reason
                    fresh.append(f"cannot read {path}: {reason}; another video takes its place")
        return fresh

    def check(self, *, any_failed: bool) -> None:
        """Raise DataError when the last step made the bad ones too many; a mended run can go on."""
        if any_failed and self.bad >= AT_LEAST and self.bad > self.max_bad * self.asked:
            first = "; ".join(f"{path} ({reason})" for path, reason in list(self.reasons.items())[:3])
            raise DataError(
                f"{self.bad} of {self.asked} samples could not be read, more than "
                f"data.max_bad={self.max_bad} allows: {first}; bad_videos.csv lists all {len(self.reasons)}"
            )

    def counts(self) -> dict[str, int]:
        return {"asked": self.asked, "bad": self.bad}

    def restore(self, counts: dict[str, int], reasons: dict[str, str]) -> None:
        """Go on from what an earlier part of the run counted."""
        self.asked, self.bad, self.reasons = counts["asked"], counts["bad"], dict(reasons)


def refuse_too_many(skipped: Sequence[tuple[str, str]], *, asked: int, max_bad: float) -> None:
    """Raise DataError when so many of the videos asked for could not be read that a result says little.

    Args:
        skipped: path and reason of each.
        max_bad: the share that may be (`data.max_bad`).
    """
    if len(skipped) == asked or (len(skipped) >= AT_LEAST and len(skipped) > max_bad * asked):
        path, reason = skipped[0]
        raise DataError(
            f"{len(skipped)} of {asked} videos could not be read, more than data.max_bad={max_bad} allows: "
            f"first {path} ({reason})"
        )
