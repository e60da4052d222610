"""Videos in tar files of WebDataset's layout (shards), and the index that locates each of them.

The index of a list `train.csv` is `train.index.json`, next to its tar files. It has a row for every line of
the list, with the same columns and in the same order, so that a run over shards draws the same clips as a run
over the files. Each row also names the tar file and the bytes of its video.
"""

from __future__ import annotations

import json
from typing import Final

from everest.data.list_text import ListRow
from everest.errors import DataError
from everest.system.storage import Location
from everest.video.folders import as_data_error
from everest.video.source import Member, video_version

INDEX_SUFFIX: Final = ".index.json"
FORMAT: Final = "everest-shards"
VERSION: Final = 1
_LOCATION: Final = frozenset({"tar", "offset", "size"})


def find_index(source: Location) -> Location | None:
    """Returns the index that a path names: the path itself, or the only index in a folder; None without one.

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
    """Reads the rows of an index, each with the part of a shard that is its video.

    Raises:
        DataError: the file is not an index, or a shard is missing or not the one that it was made with.
    """
    try:
        with as_data_error(file):
            document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: no index of shards, or a damaged one ({error})") from error
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise DataError(f"{file}: no index of `everest prepare shard`, or one of another version")
    shards = {shard["file"]: file.parent.absolute() / shard["file"] for shard in document["shards"]}
    for shard in document["shards"]:
        path, expected = shards[shard["file"]], shard["bytes"]
        try:
            size = video_version(path)[0]
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; the index next to it names this shard") from error
        if size not in (expected, -1):  # -1: the storage does not report the size
            raise DataError(f"{path}: {size} bytes where its index expects {expected}; copy or make it again")
    rows = []
    for number, sample in enumerate(document["samples"]):
        values = {name: value for name, value in sample.items() if name not in _LOCATION}
        member = Member(shards[sample["tar"]], sample["offset"], sample["size"], sample["path"])
        rows.append(ListRow(f"{file}: sample {number}", values, json.dumps(values), member))
    return rows
