"""Videos of a list into tar files of WebDataset's layout, with an index (everest.data.shards).

A video is a member `000000012.mp4`, as its bytes are, beside `000000012.json` with what the list says of it.
The same list and videos give the same bytes, whether the work was interrupted or not: headers hold neither
time nor owner, and which video comes into which shard is settled before the first is written.
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

from everest.data.contents import content, version
from everest.data.folders import VIDEOS, refusals_told
from everest.data.remote import Location
from everest.data.shards import FORMAT, INDEX_SUFFIX, VERSION
from everest.data.video import picture_folder
from everest.errors import DataError, EnvironmentProblem, RecipeError
from everest.files import write_atomically, write_text
from everest.prepare.originals import Original
from everest.prepare.output_folder import refuse_foreign, sole_writer
from everest.reports import Report

PLAN_SUFFIX: Final = ".plan.json"  # of a hidden file that is there while shards are written
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

    def name(self, number: int) -> str:
        return f"{self.stem}-{number:06d}.tar"


def write_shards(
    source: Original, output: Path, *, max_bytes: int, max_count: int, overwrite: bool, report: Report
) -> dict[str, Any]:
    """Write the shards of a list and their index; what an earlier call has finished is kept.

    Args:
        max_bytes: of the videos of a shard; a larger video has one of its own.
        max_count: videos of a shard.
    Returns:
        `{"index", "shards", "videos", "samples", "bytes", "kept"}`: paths and numbers.
    Raises:
        DataError: a video cannot be read.
        RecipeError: `output` holds something else.
        EnvironmentProblem: no webdataset, or no room on the disk.
    """
    webdataset = _webdataset()
    plan = plan_shards(source, max_bytes=max_bytes, max_count=max_count)
    index = output / f"{plan.stem}{INDEX_SUFFIX}"
    if not overwrite:
        refuse_foreign(output, lambda name: name.endswith((INDEX_SUFFIX, PLAN_SUFFIX)))
    progress = output / f".{plan.stem}{PLAN_SUFFIX}"
    before = _fingerprint(index) or _fingerprint(progress)
    if before != plan.fingerprint and not overwrite and (before or _shards_of(plan.stem, output)):
        raise RecipeError(
            f"--output {output}: holds shards of another {plan.stem}, or of other sizes; "
            "choose another folder, or use --overwrite"
        )
    with sole_writer(progress):
        kept = _begin(plan, output, anew=overwrite or before is None, index=index, progress=progress)
        done = 0
        videos = sum(map(len, plan.parts))
        for number, part in enumerate(plan.parts):
            tar = output / plan.name(number)
            if number not in kept:
                write_atomically(tar, partial(_write_shard, webdataset, part))
            done += len(part)
            report({"event": "video", "done": done, "videos": videos})
        told = _index(plan, output, source)
        write_text(index, told)
        progress.unlink()
    return {
        "index": str(index),
        "shards": len(plan.parts),
        "videos": videos,
        "samples": len(source.rows),
        "bytes": sum((output / plan.name(number)).stat().st_size for number in range(len(plan.parts))),
        "kept": len(kept),
    }


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


def _shards_of(stem: str, output: Path) -> list[Path]:
    return sorted(output.glob(f"{escape(stem)}-{'[0-9]' * 6}.tar"))


def _begin(plan: ShardPlan, output: Path, *, anew: bool, index: Path, progress: Path) -> set[int]:
    """Note what is written now; the numbers of the shards that are done already."""
    if anew:
        for file in (index, *_shards_of(plan.stem, output)):
            file.unlink(missing_ok=True)
        with progress.open("w") as file:  # in place, as it is locked
            json.dump({"plan": plan.fingerprint}, file)
    there = {file.name for file in _shards_of(plan.stem, output)}
    return {number for number in range(len(plan.parts)) if plan.name(number) in there}


def _fingerprint(file: Path) -> str | None:
    try:
        return json.loads(file.read_text())["plan"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or none that is whole
        return None


def _write_shard(webdataset: ModuleType, part: Sequence[Entry], file: Path) -> None:
    settings = {"encoder": False, "compress": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
    with file.open("wb") as stream, webdataset.TarWriter(stream, **settings) as writer:
        for entry in part:
            with refusals_told(entry.video):
                data = content(entry.video)
            if len(data) != entry.size:
                raise DataError(f"{entry.video}: changed while the shards were written; run again")
            about = json.dumps(entry.about(), ensure_ascii=False).encode()
            suffix = entry.member.removeprefix(f"{entry.key}.")
            writer.write({"__key__": entry.key, suffix: data, "json": about})


def _index(plan: ShardPlan, output: Path, source: Original) -> str:
    """The index, from where the members really are."""
    where: dict[str, dict[str, Any]] = {}
    shards = []
    for number, part in enumerate(plan.parts):
        tar = output / plan.name(number)
        members = _members(tar)
        shards.append({"file": tar.name, "bytes": tar.stat().st_size})
        for entry in part:
            offset, size = members.get(entry.member, (0, -1))
            if size != entry.size:
                raise DataError(f"{tar}: damaged, its {entry.member} is not {entry.path}; use --overwrite")
            where[entry.path] = {"tar": tar.name, "offset": offset, "size": size}
    samples = ",\n".join(json.dumps({**row, **where[row["path"]]}) for row in source.rows)
    head = {"format": FORMAT, "version": VERSION, "plan": plan.fingerprint, "shards": shards}
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
