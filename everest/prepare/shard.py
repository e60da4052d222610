"""Writes the videos of a list to tar files in WebDataset's layout, with an index (everest.lists.columns).

A video is a member `000000012.mp4` with its bytes unchanged, next to `000000012.json` with its line of the
list. All shards are planned before the first is written. The same list and videos give the same bytes,
whether the command was interrupted or not: headers hold neither time nor owner, and a shard appears under its
name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from everest.errors import DataError, RecipeError
from everest.lists.columns import INDEX_HEADER, INDEX_SUFFIX, SEGMENT_COLUMNS, is_used_column
from everest.lists.inputs import VideoTable
from everest.lists.labels import is_integer
from everest.system.events import Emit
from everest.system.files import atomic_file, check_new_folder, refuse_inputs, write_text
from everest.system.locks import sole_writer
from everest.system.storage import Location
from everest.system.text import parse_json
from everest.video.folders import VIDEO_SUFFIXES, as_data_error
from everest.video.images import image_folder
from everest.video.source import video_bytes, video_version

PLAN_SUFFIX: Final = ".plan.json"  # suffix of a hidden file that exists while shards are written


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A video and its shard member."""

    key: str  # WebDataset's name of the sample: a number, as WebDataset forbids dots and some letters
    member: str  # the key with the suffix of the video
    path: str  # path as written in the list
    video: Location
    size: int
    rows: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """The videos of each shard, and the files in the output folder, which may also hold other lists."""

    folder: Path
    stem: str
    index: Path
    progress: Path  # exists while shards are written
    shards: tuple[tuple[ShardEntry, ...], ...]
    fingerprint: str  # hash of the lines, the versions of the videos and the limits

    def tar(self, index: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{self.stem}-{index:06d}.tar"

    def find_existing(self) -> list[Path]:
        """The existing shards of a list of this name, written by this plan or another."""
        return sorted(self.folder.glob(f"{escape(self.stem)}-{'[0-9]' * 6}.tar"))

    def read_saved_fingerprint(self) -> str | None:
        """The fingerprint of the plan that an earlier call finished or started; None without such a plan."""
        for file in (self.index, self.progress):
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # missing or incomplete file
                return parse_json(file.read_bytes())["plan"]
        return None


def plan_shards(source: VideoTable, output: Path, *, max_bytes: int, max_count: int) -> ShardLayout:
    """Plan the shards, filled in the order of the list; DataError for images, or videos of unknown size."""
    entries: list[ShardEntry] = []
    versions: list[tuple[int, str]] = []
    for index, (path, rows) in enumerate(source.rows_by_path().items()):
        video = source.locate(path)
        with as_data_error(video):
            if image_folder(video):
                raise DataError(f"{video}: a folder of images; `everest prepare encode` makes a video of it")
            size, version = video_version(video)
        if size < 0:
            raise DataError(f"{video}: its storage does not report sizes; copy the videos here first")
        suffix = video.suffix.lower()
        member = f"{index:09d}{suffix if suffix in VIDEO_SUFFIXES else '.video'}"
        entries.append(ShardEntry(f"{index:09d}", member, path, video, size, tuple(rows)))
        versions.append((size, version))
    shards: list[list[ShardEntry]] = []
    free_bytes = 0
    for entry in entries:
        if not shards or entry.size > free_bytes or len(shards[-1]) == max_count:
            shards.append([])
            free_bytes = max_bytes
        shards[-1].append(entry)
        free_bytes -= entry.size
    contents = [source.rows, versions, max_bytes, max_count]
    fingerprint = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
    return ShardLayout(
        folder=output,
        stem=source.stem,
        index=output / f"{source.stem}{INDEX_SUFFIX}",
        progress=output / f".{source.stem}{PLAN_SUFFIX}",
        shards=tuple(map(tuple, shards)),
        fingerprint=fingerprint,
    )


def write_shards(
    source: VideoTable, output: Path, *, max_bytes: int, max_count: int, overwrite: bool, emit: Emit
) -> dict[str, Any]:
    """Write the shards of a list and their index; shards that an earlier call finished are kept.

    Args:
        max_bytes: limit for the videos of a shard; a larger video gets a shard of its own.
        max_count: limit for the number of videos in a shard.
    Returns:
        The document of `everest prepare shard --json`: the path of the index, and counts.
    Raises:
        DataError, RecipeError: an unreadable or changed video; an output folder with other files.
    """
    rows = tuple({key: text for key, text in row.items() if is_used_column(key)} for row in source.rows)
    source = replace(source, rows=rows)
    plan = plan_shards(source, output, max_bytes=max_bytes, max_count=max_count)
    inputs = [source.location, *(entry.video for entries in plan.shards for entry in entries)]
    refuse_inputs(output, inputs, fix="choose a folder of its own")
    videos = sum(map(len, plan.shards))
    suffixes = (INDEX_SUFFIX, PLAN_SUFFIX)
    check_new_folder(output, overwrite=overwrite, is_output=lambda name: name.endswith(suffixes))
    with sole_writer(plan.index):
        saved = plan.read_saved_fingerprint()
        if not overwrite and saved != plan.fingerprint and (saved or plan.find_existing()):
            others = f"holds shards of another {plan.stem}, or of other sizes or versions of the videos"
            raise RecipeError(f"--output {output}: {others}; choose another folder, or use --overwrite")
        if overwrite or saved is None:
            for file in (plan.index, *plan.find_existing()):
                file.unlink(missing_ok=True)
        if not plan.index.exists():
            write_text(plan.progress, json.dumps({"plan": plan.fingerprint}))
        kept = set(plan.find_existing())
        num_done = 0
        for index, entries in enumerate(plan.shards):
            if plan.tar(index) not in kept:
                with atomic_file(plan.tar(index)) as file:
                    _write_shard(entries, file)
            num_done += len(entries)
            emit({"event": "video", "done": num_done, "videos": videos})
        write_text(plan.index, _index_text(plan, source))
        plan.progress.unlink(missing_ok=True)
    return {
        "index": str(plan.index),
        "shards": len(plan.shards),
        "videos": videos,
        "samples": len(source.rows),
        "bytes": sum(tar.stat().st_size for tar in plan.find_existing()),
        "kept": len(kept),
    }


def _write_shard(entries: Sequence[ShardEntry], file: Path) -> None:
    with tarfile.open(file, "w") as tar:
        for entry in entries:
            with as_data_error(entry.video):
                data = video_bytes(entry.video)
            if len(data) != entry.size:
                raise DataError(f"{entry.video}: changed while the shards were written; run again")
            lines = [{name: _convert_cell(name, text) for name, text in row.items()} for row in entry.rows]
            document = lines[0] if len(lines) == 1 else {"path": entry.path, "segments": lines}
            members = {entry.member: data, f"{entry.key}.json": json.dumps(document).encode()}
            for name, content in sorted(members.items()):
                info = tarfile.TarInfo(name)  # its header has neither time nor owner
                info.size = len(content)
                tar.addfile(info, BytesIO(content))


def _convert_cell(column: str, text: str) -> str | int | float:
    """A cell of a list as WebDataset's readers expect it: a number in a column that can hold one."""
    if is_integer(text) and (column in SEGMENT_COLUMNS or column.startswith("label")):
        return int(text)
    return float(text) if column in SEGMENT_COLUMNS else text


def _index_text(plan: ShardLayout, source: VideoTable) -> str:
    """The text of the index, with the real offsets of the members."""
    locations: dict[str, dict[str, Any]] = {}
    shards = []
    for index, entries in enumerate(plan.shards):
        tar = plan.tar(index)
        members: dict[str, tuple[int, int]] = {}
        with suppress(OSError, tarfile.TarError), tarfile.open(tar, "r:") as file:
            members.update((member.name, (member.offset_data, member.size)) for member in file)
        shards.append({"file": tar.name, "bytes": tar.stat().st_size})
        for entry in entries:
            offset, size = members.get(entry.member, (0, -1))
            if size != entry.size:
                raise DataError(f"{tar}: damaged, its {entry.member} is not {entry.path}; use --overwrite")
            locations[entry.path] = {"tar": tar.name, "offset": offset, "size": size}
    samples = ",\n".join(json.dumps({**row, **locations[row["path"]]}) for row in source.rows)
    head = INDEX_HEADER | {"plan": plan.fingerprint, "shards": shards}
    return f'{json.dumps(head)[:-1]}, "samples": [\n{samples}\n]}}\n'
