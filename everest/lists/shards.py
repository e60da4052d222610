"""Videos in tar files of WebDataset's layout (shards), and the index that locates each of them.

The index of a list `train.csv` is `train.index.json`, next to its tar files. It has a row for every line of
the list, with the same columns and in the same order, so that a run over shards draws the same clips as a run
over the files. Each row also names the tar file and the bytes of its video.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, NonNegativeInt, TypeAdapter

from everest.errors import DataError
from everest.lists.header import is_known
from everest.lists.text import ListRow
from everest.system.storage import Location
from everest.system.text import is_plain, is_unicode, parse_json, validated
from everest.video.folders import as_data_error
from everest.video.source import Member, video_version

INDEX_SUFFIX: Final = ".index.json"
FORMAT: Final = "everest-shards"
VERSION: Final = 1
Text = InstanceOf[str]  # unlike `str`, accepts paths that are not UTF-8


class ShardFile(BaseModel):
    """A shard, next to the index."""

    model_config = ConfigDict(strict=True, extra="forbid")
    file: Text
    bytes: NonNegativeInt


class ShardSample(BaseModel):
    """A line of the list, by its columns, and the place of its video."""

    model_config = ConfigDict(strict=True, extra="allow")  # the other columns
    path: Text
    tar: Text
    offset: NonNegativeInt
    size: NonNegativeInt


class ShardIndex(BaseModel):
    """The document of an index."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: Literal["everest-shards"]
    version: Literal[1]
    plan: str  # fingerprint of the lines, sizes and limits that the shards were made from
    shards: list[ShardFile]
    samples: Annotated[list[ShardSample], Field(min_length=1)]


_INDEX: Final = TypeAdapter(ShardIndex)


def find_index(source: Location) -> Location | None:
    """Returns the index that a path names: the path itself, or the only index in a folder, or None."""
    if source.name.endswith(INDEX_SUFFIX):
        return source
    if not source.is_dir():
        return None
    found = sorted(path.name for path in source.iterdir() if path.name.endswith(INDEX_SUFFIX))
    if len(found) > 1:
        raise DataError(f"{source}: holds the shards of several lists; name one of {', '.join(found)}")
    return source / found[0] if found else None


def read_index(file: Location) -> list[ListRow]:
    """Reads the rows of an index, each with the part of a shard that is its video."""
    try:
        with as_data_error(file):
            document = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: no index of shards, or a damaged one ({error})") from error
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise DataError(f"{file}: no index of `everest prepare shard`, or one of another version")
    try:
        index = validated(_INDEX, document)
        _check_places(index)
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); copy it, or make it and its shards again") from error
    for shard in index.shards:
        path = file.parent.absolute() / shard.file
        try:
            size = video_version(path)[0]
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; the index next to it names this shard") from error
        if size not in (shard.bytes, -1):  # -1: the storage does not report the size
            raise DataError(
                f"{path}: {size} bytes where its index expects {shard.bytes}; copy or make it again"
            )
    rows = []
    for number, sample in enumerate(index.samples):
        values = {"path": sample.path, **(sample.__pydantic_extra__ or {})}
        member = Member(file.parent.absolute() / sample.tar, sample.offset, sample.size, sample.path)
        rows.append(ListRow(f"{file}: sample {number}", values, json.dumps(values), member))
    return rows


def _check_places(index: ShardIndex) -> None:
    """Raise ValueError for a shard outside of the index's folder, or a video outside of its shard."""
    sizes = {shard.file: shard.bytes for shard in index.shards}
    if len(sizes) < len(index.shards):
        raise ValueError("shards: a name twice")
    for name in sizes:
        if not is_plain(name):
            raise ValueError(f"shards: {name!r} is not the name of a file in its folder")
    for number, sample in enumerate(index.samples):
        where = f"samples.{number}"
        if sample.tar not in sizes:
            raise ValueError(f"{where}.tar: {sample.tar!r} is not among the shards")
        if sample.offset + sample.size > sizes[sample.tar]:
            raise ValueError(f"{where}: ends after its shard")
        if not is_unicode(sample.path):
            raise ValueError(f"{where}.path: {sample.path!r} is no name of a file")
        for name, text in (sample.__pydantic_extra__ or {}).items():
            if not (is_known(name) and isinstance(text, str) and is_unicode(name + text)):
                raise ValueError(f"{where}: {name!r} is no column of a list, or has no text")
