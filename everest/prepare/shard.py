"""Which video comes into which shard, settled before the first is written.

Videos of a list into tar files of WebDataset's layout, with an index (everest.data.shards).

A video is a member `000000012.mp4`, as its bytes are, beside `000000012.json` with what the list says of it.
The same list and videos give the same bytes, whether the work was interrupted or not: headers hold neither
time nor owner, and a shard is in its place only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from everest.data.shards import FORMAT, INDEX_SUFFIX, VERSION
from everest.errors import DataError, EnvironmentProblem, RecipeError
from everest.prepare.sources import SourceList
from everest.system.events import Report
from everest.system.files import write_atomically, write_text
from everest.system.locks import refuse_foreign, sole_writer
from everest.system.storage import Location
from everest.video.folders import VIDEO_SUFFIXES, as_data_error
from everest.video.reader import image_folder
from everest.video.source import video_bytes, video_version

NUMBERS: Final = ("start", "end", "start_frame", "end_frame")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A video on its way into a shard."""

    key: str  # WebDataset's name of the sample; numbers, as it may hold neither dots nor all letters
    path: str  # as the list has it
    video: Location
    size: int
    rows: tuple[dict[str, str], ...]

    @property
    def member(self) -> str:
        suffix = self.video.suffix.lower()
        return f"{self.key}{suffix if suffix in VIDEO_SUFFIXES else '.video'}"

    def about(self) -> dict[str, Any]:
        """What `KEY.json` says: the line of the list, or all lines under `segments`."""
        lines = [{name: _number(name, text) for name, text in row.items()} for row in self.rows]
        return lines[0] if len(lines) == 1 else {"path": self.path, "segments": lines}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which video comes into which shard."""

    stem: str
    parts: tuple[tuple[ShardEntry, ...], ...]
    fingerprint: str  # of the lines, the sizes and the limits

    @property
    def videos(self) -> int:
        return sum(map(len, self.parts))

    def name(self, number: int) -> str:
        return f"{self.stem}-{number:06d}.tar"


def plan_shards(source: SourceList, *, max_bytes: int, max_count: int) -> ShardPlan:
    """Fill shard after shard in the order of the list."""
    entries = [
        _entry(source, number, path, rows) for number, (path, rows) in enumerate(source.paths().items())
    ]
    parts: list[list[ShardEntry]] = []
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


def _entry(source: SourceList, number: int, path: str, rows: Sequence[dict[str, str]]) -> ShardEntry:
    video = source.video(path)
    with as_data_error(video):
        if image_folder(video):
            raise DataError(f"{video}: a folder of pictures; `everest prepare encode` makes a video of it")
        size, _ = video_version(video)
    if size < 0:
        raise DataError(f"{video}: its storage does not tell sizes; copy the videos here first")
    return ShardEntry(f"{number:09d}", path, video, size, tuple(rows))


def _number(name: str, text: str) -> str | int | float:
    """What a WebDataset reader expects: numbers as numbers, where the column may hold one."""
    if name in NUMBERS or name.startswith("label"):
        with suppress(ValueError):
            return int(text)
        if name in NUMBERS:
            return float(text)
    return text


PLAN_SUFFIX: Final = ".plan.json"  # of a hidden file that is there while shards are written


def write_shards(
    source: SourceList, output: Path, *, max_bytes: int, max_count: int, overwrite: bool, report: Report
) -> dict[str, Any]:
    """Write the shards of a list and their index; what an earlier call has finished is kept.

    Args:
        max_bytes: of the videos of a shard; a larger video has one of its own.
        max_count: videos of a shard.
    Returns:
        `{"index", "shards", "videos", "samples", "bytes", "kept"}`: a path and numbers.
    Raises:
        DataError: a video cannot be read.
        RecipeError: `output` holds something else.
        EnvironmentProblem: no webdataset, or no room on the disk.
    """
    webdataset = _webdataset()
    plan = plan_shards(source, max_bytes=max_bytes, max_count=max_count)
    place = _Place(output, plan)
    if not overwrite:
        place.refuse_other()
    with sole_writer(place.progress):
        kept = place.begin(anew=overwrite)
        done = 0
        for number, part in enumerate(plan.parts):
            if number not in kept:
                write_atomically(place.tar(number), partial(_write_shard, webdataset, part))
            done += len(part)
            report({"event": "video", "done": done, "videos": plan.videos})
        write_text(place.index, _index(place, source))
        place.progress.unlink()
    return {
        "index": str(place.index),
        "shards": len(plan.parts),
        "videos": plan.videos,
        "samples": len(source.rows),
        "bytes": sum(tar.stat().st_size for tar in place.there()),
        "kept": len(kept),
    }


@dataclass(frozen=True, slots=True)
class _Place:
    """The files of a plan in a folder, which may hold those of other lists too."""

    folder: Path
    plan: ShardPlan

    @property
    def index(self) -> Path:
        return self.folder / f"{self.plan.stem}{INDEX_SUFFIX}"

    @property
    def progress(self) -> Path:
        return self.folder / f".{self.plan.stem}{PLAN_SUFFIX}"

    def tar(self, number: int) -> Path:
        return self.folder / self.plan.name(number)

    def there(self) -> list[Path]:
        """The shards of a list of this name, of this plan or another."""
        return sorted(self.folder.glob(f"{escape(self.plan.stem)}-{'[0-9]' * 6}.tar"))

    def refuse_other(self) -> None:
        """Raise RecipeError where the folder holds something else, or another plan."""
        refuse_foreign(self.folder, lambda name: name.endswith((INDEX_SUFFIX, PLAN_SUFFIX)))
        before = self._before()
        if before != self.plan.fingerprint and (before or self.there()):
            raise RecipeError(
                f"--output {self.folder}: holds shards of another {self.plan.stem}, or of other sizes; "
                "choose another folder, or use --overwrite"
            )

    def begin(self, *, anew: bool) -> set[int]:
        """Note what is written from now on; the numbers of the shards that are done."""
        if anew or self._before() is None:
            for file in (self.index, *self.there()):
                file.unlink(missing_ok=True)
            with self.progress.open("w") as file:  # in place, as it is locked
                json.dump({"plan": self.plan.fingerprint}, file)
        names = {file.name for file in self.there()}
        return {number for number in range(len(self.plan.parts)) if self.plan.name(number) in names}

    def _before(self) -> str | None:
        """The fingerprint of the plan that an earlier call carried out, or began to."""
        return _fingerprint(self.index) or _fingerprint(self.progress)


def _fingerprint(file: Path) -> str | None:
    try:
        return json.loads(file.read_text())["plan"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or none that is whole
        return None


def _write_shard(webdataset: ModuleType, part: Sequence[ShardEntry], file: Path) -> None:
    settings = {"encoder": False, "compress": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
    with file.open("wb") as stream, webdataset.TarWriter(stream, **settings) as writer:
        for entry in part:
            with as_data_error(entry.video):
                data = video_bytes(entry.video)
            if len(data) != entry.size:
                raise DataError(f"{entry.video}: changed while the shards were written; run again")
            about = json.dumps(entry.about()).encode()
            suffix = entry.member.removeprefix(f"{entry.key}.")
            writer.write({"__key__": entry.key, suffix: data, "json": about})


def _index(place: _Place, source: SourceList) -> str:
    """The index, from where the members really are."""
    where: dict[str, dict[str, Any]] = {}
    shards = []
    for number, part in enumerate(place.plan.parts):
        tar = place.tar(number)
        members = _members(tar)
        shards.append({"file": tar.name, "bytes": tar.stat().st_size})
        for entry in part:
            offset, size = members.get(entry.member, (0, -1))
            if size != entry.size:
                raise DataError(f"{tar}: damaged, its {entry.member} is not {entry.path}; use --overwrite")
            where[entry.path] = {"tar": tar.name, "offset": offset, "size": size}
    samples = ",\n".join(json.dumps({**row, **where[row["path"]]}) for row in source.rows)
    head = {"format": FORMAT, "version": VERSION, "plan": place.plan.fingerprint, "shards": shards}
    return f'{json.dumps(head)[:-1]}, "samples": [\n{samples}\n]}}\n'


def _members(tar: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every member."""
    try:
        with tarfile.open(tar, "r:") as opened:
            return {member.name: (member.offset_data, member.size) for member in opened}
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar}: cannot be read as a shard ({error}); use --overwrite") from error


def _webdataset() -> ModuleType:
    try:
        import webdataset
    except ImportError as error:
        raise EnvironmentProblem(
            'shards need the package webdataset: pip install "everest-video[shards]"'
        ) from error
    return webdataset
