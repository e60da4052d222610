"""Videos in tar files of WebDataset's layout, and the index by which any of them is found.

The index of a list `train.csv` is `train.index.json`, beside its tar files. It has a row for every line of
the list, with the same columns and in the same order, so that a run over shards draws the clips that a run
over the files draws; and of every row the tar file and the bytes in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from everest.data.list_text import ListRow
from everest.errors import DataError
from everest.system.storage import Location
from everest.video.folders import as_data_error
from everest.video.source import Member, video_version

INDEX_SUFFIX: Final = ".index.json"
FORMAT: Final = "everest-shards"
VERSION: Final = 1
_WHERE: Final = frozenset({"tar", "offset", "size"})


def find_index(source: Location) -> Location | None:
    """The index that a path names: itself, or the only one in a folder; None where there is none.

    Raises:
        DataError: the folder holds several.
    """
    if source.name.endswith(INDEX_SUFFIX):
        return source
    if not source.is_dir():
        return None
    found = sorted(path.name for path in source.iterdir() if path.name.endswith(INDEX_SUFFIX))
    if len(found) > 1:
        raise DataError(f"{source}: holds the shards of several lists; name one of {', '.join(found)}")
    return source / found[0] if found else None


def read_index(file: Location) -> list[ListRow]:
    """The rows of an index, each with the part of a shard that is its video.

    Raises:
        DataError: it is no index, or a shard is missing or not the one that it was made with.
    """
    told = _parsed(file)
    folder = file.parent.absolute()
    shards = {shard["file"]: folder / shard["file"] for shard in told["shards"]}
    for shard in told["shards"]:
        _check_size(shards[shard["file"]], shard["bytes"])
    return [
        _row(f"{file}: sample {number}", sample, shards[sample["tar"]])
        for number, sample in enumerate(told["samples"])
    ]


def _parsed(file: Location) -> dict[str, Any]:
    try:
        with as_data_error(file):
            told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: no index of shards, or a damaged one ({error})") from error
    if not isinstance(told, dict) or (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{file}: no index of `everest prepare shard`, or one of another version")
    return told


def _check_size(shard: Location, size: int) -> None:
    try:
        there = video_version(shard)[0]
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror}; the index beside it names this shard") from error
    if there not in (size, -1):
        raise DataError(f"{shard}: {there} bytes where its index says {size}; copy or make it again")


def _row(place: str, sample: Mapping[str, Any], shard: Location) -> ListRow:
    values = {name: value for name, value in sample.items() if name not in _WHERE}
    member = Member(shard, sample["offset"], sample["size"], sample["path"])
    return ListRow(place, values, json.dumps(values), member)
