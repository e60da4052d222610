"""Which video comes into which shard, settled before the first is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from everest.errors import DataError
from everest.prepare.originals import Original
from everest.system.storage import Location
from everest.video.folders import VIDEOS, refusals_told
from everest.video.reader import picture_folder
from everest.video.source import version

NUMBERS: Final = ("start", "end", "start_frame", "end_frame")


@dataclass(frozen=True, slots=True)
class Entry:
    """A video on its way into a shard."""

    key: str  # WebDataset's name of the sample; numbers, as it may hold neither dots nor all letters
    path: str  # as the list has it
    video: Location
    size: int
    rows: tuple[dict[str, str], ...]

    @property
    def member(self) -> str:
        suffix = self.video.suffix.lower()
        return f"{self.key}{suffix if suffix in VIDEOS else '.video'}"

    def about(self) -> dict[str, Any]:
        """What `KEY.json` says: the line of the list, or all lines under `segments`."""
        lines = [{name: _number(name, text) for name, text in row.items()} for row in self.rows]
        return lines[0] if len(lines) == 1 else {"path": self.path, "segments": lines}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which video comes into which shard."""

    stem: str
    parts: tuple[tuple[Entry, ...], ...]
    fingerprint: str  # of the lines, the sizes and the limits

    @property
    def videos(self) -> int:
        return sum(map(len, self.parts))

    def name(self, number: int) -> str:
        return f"{self.stem}-{number:06d}.tar"


def plan_shards(source: Original, *, max_bytes: int, max_count: int) -> ShardPlan:
    """Fill shard after shard in the order of the list."""
    entries = [
        _entry(source, number, path, rows) for number, (path, rows) in enumerate(source.paths().items())
    ]
    parts: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not parts or entry.size > room or len(parts[-1]) == max_count:
            parts.append([])
            room = max_bytes
        parts[-1].append(entry)
        room -= entry.size
    told = [source.rows, [entry.size for entry in entries], max_bytes, max_count]
    fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return ShardPlan(source.stem, tuple(map(tuple, parts)), fingerprint)


def _entry(source: Original, number: int, path: str, rows: Sequence[dict[str, str]]) -> Entry:
    video = source.video(path)
    with refusals_told(video):
        if picture_folder(video):
            raise DataError(f"{video}: a folder of pictures; `everest prepare encode` makes a video of it")
        size, _ = version(video)
    if size < 0:
        raise DataError(f"{video}: its storage does not tell sizes; copy the videos here first")
    return Entry(f"{number:09d}", path, video, size, tuple(rows))


def _number(name: str, text: str) -> str | int | float:
    """What a WebDataset reader expects: numbers as numbers, where the column may hold one."""
    if name in NUMBERS or name.startswith("label"):
        with suppress(ValueError):
            return int(text)
        if name in NUMBERS:
            return float(text)
    return text
