"""From what annotations name to the files: found by name, at any depth, whatever their suffix."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from everest.data.samples import Sample
from everest.prepare.layouts.annotations import Entry
from everest.video.folders import VIDEOS


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Which entries have a file, and which do not."""

    lists: Mapping[str, Sequence[Sample]]
    missing: Sequence[tuple[str, str]]  # list, and the first name that its file may have
    extra: Sequence[Path]  # videos that no list names


def match(lists: Mapping[str, Sequence[Entry]], videos: Sequence[Path]) -> Matched:
    """Give each entry its file. Of files of one name, that in the most of the entry's folders is taken."""
    files: dict[str, list[Path]] = {}
    for video in videos:
        files.setdefault(_key(video.stem if video.suffix.lower() in VIDEOS else video.name), []).append(video)
    found: dict[str, list[Sample]] = {name: [] for name in lists}
    missing = []
    for name, entries in lists.items():
        for entry in entries:
            sample = _sample(entry, files)
            if sample is None:
                missing.append((name, entry.places[0].name))
            else:
                found[name].append(sample)
    used = {sample.path for samples in found.values() for sample in samples}
    return Matched(lists=found, missing=missing, extra=[video for video in videos if str(video) not in used])


def _key(name: str) -> str:
    """macOS writes accents as signs of their own."""
    return unicodedata.normalize("NFC", name)


def _sample(entry: Entry, files: Mapping[str, Sequence[Path]]) -> Sample | None:
    for place in entry.places:
        candidates = files.get(_key(place.name))
        if candidates:
            path = max(candidates, key=lambda file: len(entry.folders.intersection(file.parts)))
            return Sample(
                path=str(path),
                labels=entry.labels,
                start=place.start,
                end=place.end,
                start_frame=place.start_frame,
                end_frame=place.end_frame,
            )
    return None
