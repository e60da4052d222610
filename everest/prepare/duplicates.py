"""The same video twice: listed twice, copied under another name, or packed anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from everest.data.samples import Sample
from everest.prepare.examine import Finding
from everest.prepare.sources import ListedSample, Source

Kind = Literal["listed", "file", "frames"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One of several rows that show the same."""

    source: Source
    row: ListedSample


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Rows that show the same.

    listed: the same file and part; file: files of the same bytes; frames: as many frames, and the first of
    them (everest.prepare.examine.COMPARED) the same, as in a file that was packed anew.
    """

    kind: Kind
    copies: Sequence[Copy]

    @property
    def leaks(self) -> bool:
        """Whether it stands in several lists: what is tested was trained on."""
        return len({copy.source.path for copy in self.copies}) > 1

    def told(self) -> dict[str, Any]:
        """For scripts."""
        labels = {copy.row.sample.labels for copy in self.copies if copy.row.sample.labels}
        return {
            "kind": self.kind,
            "videos": list(dict.fromkeys(copy.row.sample.video_id for copy in self.copies)),
            "lists": list(dict.fromkeys(str(copy.source.path) for copy in self.copies)),
            "leak": self.leaks,
            "labels_differ": len(labels) > 1,
        }


def find_duplicates(sources: Sequence[Source], findings: Mapping[str, Finding]) -> list[Duplicate]:
    """All of them, the surest kind first; rows that one kind joins are one row to the next.

    A list for pre-training is compared with itself only.
    """
    copies = [Copy(source, row) for source in sources for row in source.rows]
    found: list[Duplicate] = []
    kinds: tuple[tuple[Kind, Callable[[Sample, Finding], Hashable]], ...] = (
        ("listed", lambda sample, finding: sample.path),
        ("file", lambda sample, finding: finding.content),
        ("frames", lambda sample, finding: finding.beginning and (finding.beginning, finding.frames)),
    )
    for kind, same in kinds:
        alike: dict[Hashable, list[Copy]] = {}
        for copy in copies:
            sample = copy.row.sample
            key = same(sample, findings[sample.path])
            if key is not None:
                apart = copy.source.path if copy.source.pretrains else None
                alike.setdefault((key, _part(sample), apart), []).append(copy)
        found += [Duplicate(kind=kind, copies=group) for group in alike.values() if len(group) > 1]
        repeated = {id(copy) for group in alike.values() for copy in group[1:]}
        copies = [copy for copy in copies if id(copy) not in repeated]
    return found


def _part(sample: Sample) -> tuple[float | int | None, ...]:
    return sample.start, sample.end, sample.start_frame, sample.end_frame
