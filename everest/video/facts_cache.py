"""The facts about video files, kept in memory and on the disk.

On the disk, a process need not read the packets of each file again: there is one small file for each video,
named by a hash of its path, size, times and inode (in a storage: URL, size and version). A changed video has
another name. Files are renamed into place when they are complete, and a damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Final

import av
import numpy as np

from everest.system.storage import RemotePath
from everest.video.facts import Orientation, VideoFacts, VideoInfo, read_facts
from everest.video.index import CountedIndex, StampedIndex
from everest.video.source import Member, Video, video_version
from everest.video.stream import VideoError

FACTS_VERSION: Final = 12  # raise it with every change of the facts or of how they are found
STORED: Final = np.dtype("<i8")
MOST_FRAMES: Final = 2**23  # heuristic: of all files in memory, 16 bytes each

Key = tuple[Video, int, str]  # a video, and its version: a rewritten file has another one


@dataclass(slots=True)
class _FactsCache:
    """The facts that this process keeps."""

    folder: Path | None = None  # on the disk
    recent: dict[Key, VideoFacts] = field(default_factory=dict)  # the last one used stands last
    frames: int = 0  # of all recent ones

    def add(self, key: Key, facts: VideoFacts) -> None:
        """Add the facts of a file, which were not known, and forget those of the files used first."""
        self.frames += facts.info.frames
        while self.recent and self.frames > MOST_FRAMES:
            self.frames -= self.recent.pop(next(iter(self.recent))).info.frames
        self.recent[key] = facts


_cache = _FactsCache()


def keep_facts_in(folder: Path | None) -> None:
    """Keep the facts of all files but shards in a folder from now on, also for processes started later."""
    _cache.folder = folder


def clear_video_cache() -> None:
    """Free the facts of all files, for callers that need each file only once."""
    _cache.recent.clear()
    _cache.frames = 0


def inspect_video(path: Video) -> VideoFacts:
    """Index a file and decode its first frame; cached until the file changes."""
    try:
        key = (path, *video_version(path))
        facts = _cache.recent.pop(key, None)
        if facts is not None:
            _cache.recent[key] = facts
            return facts
        _, _, version = key
        if _cache.folder is None or isinstance(path, Member) or not version:  # a storage may state none
            facts = read_facts(path)
        else:
            facts = _facts_from_disk(path, _cache.folder)
        _cache.add(key, facts)
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    return facts


def _facts_from_disk(path: Path | RemotePath, folder: Path) -> VideoFacts:
    """The facts of a file that a folder has; else they are read, and kept there."""
    file = file_of_facts(folder, path)
    with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):  # missing or damaged
        return _unpacked(zlib.decompress(file.read_bytes()))
    facts = read_facts(path)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # without space or permission, they are read again next time
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(zlib.compress(_packed(facts), level=1))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return facts


def file_of_facts(folder: Path, path: Path | RemotePath) -> Path:
    """The file in `folder` for the facts of a video as it is now."""
    path = path.absolute()
    if isinstance(path, RemotePath):
        version: tuple[int | str, ...] = path.version()
    else:
        status = path.stat()  # the second time cannot be set
        version = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    identity = repr((FACTS_VERSION, av.__version__, str(path), *version))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return folder / name[:2] / name[2:]


def _packed(facts: VideoFacts) -> bytes:
    """A line of JSON, and the numbers of the index: of each array the differences, a tenth of the space."""
    index = {name: getattr(facts.index, name) for name in facts.index.__slots__}
    arrays = {name: value for name, value in index.items() if isinstance(value, np.ndarray)}
    header = {name: getattr(facts, name) for name in facts.__slots__} | {
        "info": astuple(facts.info),
        "index": {name: value for name, value in index.items() if name not in arrays},
        "lengths": {name: len(array) for name, array in arrays.items()},
        "is_counted": isinstance(facts.index, CountedIndex),
    }
    steps = [np.diff(array, prepend=np.int64(0)).astype(STORED).tobytes() for array in arrays.values()]
    return json.dumps(header).encode() + b"\n" + b"".join(steps)


def _unpacked(packed: bytes) -> VideoFacts:
    """Undo `_packed`."""
    header, _, numbers = packed.partition(b"\n")
    values = json.loads(header)
    index, lengths = values.pop("index"), values.pop("lengths")
    parts = np.split(np.frombuffer(numbers, dtype=STORED), np.cumsum(list(lengths.values()))[:-1])
    index |= {name: np.cumsum(part, dtype=np.int64) for name, part in zip(lengths, parts, strict=True)}
    kind = CountedIndex if values.pop("is_counted") else StampedIndex
    return VideoFacts(
        info=VideoInfo(*values.pop("info")),
        index=kind(**index),
        orientation=Orientation(*values.pop("orientation")),
        missing=tuple((start, end) for start, end in values.pop("missing")),
        notices=tuple(values.pop("notices")),
        **values,
    )
