"""Videos in tar files of WebDataset's layout (shards), and the index that locates each of them.

The index of a list `train.csv` is `train.index.json`, next to its tar files. It has a row for every line of
the list, with the same columns and in the same order, so that a run over shards draws the same clips as a run
over the files. Each row also names the tar file and the bytes of its video.
"""

from __future__ import annotations

import json
from typing import Final

from everest.errors import DataError
from everest.lists.columns import ListRow
from everest.system.storage import Location
from everest.system.text import parse_json, reading_own
from everest.video.folders import as_data_error
from everest.video.source import Member, video_version

INDEX_SUFFIX: Final = ".index.json"
FORMAT: Final = "everest-shards"
VERSION: Final = 1
PLACE: Final = ("tar", "offset", "size")  # of a sample: its shard, first byte and bytes; the rest are columns
FIX: Final = "copy it again, or make the shards again with --overwrite"


def find_index(source: Location) -> Location | None:
    """The index that a path names: the path itself, or the only index in a folder, or None."""
    if source.name.endswith(INDEX_SUFFIX):
        return source
    if not source.is_dir():
        return None
    names = sorted(path.name for path in source.iterdir() if path.name.endswith(INDEX_SUFFIX))
    if len(names) > 1:
        raise DataError(f"{source}: holds the shards of several lists; name one of {', '.join(names)}")
    return source / names[0] if names else None


def refuse_shards(source: Location) -> None:
    """Raise DataError for an index of shards, or a folder with one, where videos themselves are needed."""
    if find_index(source):
        raise DataError(f"{source}: an index of shards; name the list or folder that they were made from")


def read_index(file: Location) -> list[ListRow]:
    """Read the rows of an index, each with the part of a shard that is its video."""
    folder = file.parent.absolute()
    rows = []
    with reading_own(file, fix=FIX, error=DataError):
        with as_data_error(file):
            document = parse_json(file.read_text(encoding="utf-8"))
        if (document["format"], document["version"]) != (FORMAT, VERSION) or not document["samples"]:
            raise ValueError("no index of `everest prepare shard`, or one of another version")
        sizes = {shard["file"]: shard["bytes"] for shard in document["shards"]}
        for number, sample in enumerate(document["samples"]):
            values = {key: text for key, text in sample.items() if key not in PLACE}
            tar, offset, size = (sample[key] for key in PLACE)
            is_inside = 0 <= offset <= offset + size <= sizes[tar]
            if not is_inside or not all(isinstance(text, str) for text in values.values()):
                raise ValueError(f"sample {number} is not inside its shard, or has a value that is not text")
            member = Member(folder / tar, offset, size, sample["path"])
            rows.append(ListRow(f"{file}: sample {number}", values, json.dumps(values), member))
        for name, expected in sizes.items():
            try:
                size = video_version(folder / name)[0]
                problem = f"{size} bytes"
            except OSError as error:
                size = None
                problem = error.strerror or "cannot be read"
            if size not in (expected, -1):  # -1: the storage does not report it
                raise DataError(f"{folder / name}: {problem} where {file} expects {expected} bytes; {FIX}")
    return rows
