"""A look at a whole video: every frame is decoded, none is kept. Runs in processes of its own."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from everest.prepare.damage import damage
from everest.video.file import forget, look
from everest.video.reader import picture, pictures_of
from everest.video.stream import VideoError, decoded, retold

COMPARED: Final = 8  # ours: frames at the beginning by which copies in other files are known
_CHUNK: Final = 2**20  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a look at a video told."""

    path: str
    size: int = 0  # bytes; with `modified` it tells whether the file is still the same
    modified: int = 0  # nanoseconds since 1970
    frames: int = 0
    seconds: float | None = None  # None: a folder of pictures
    content: str | None = None  # hash of the bytes
    beginning: str | None = None  # hash of the first frames; None where they are of a single colour
    reason: str | None = None  # why it is bad
    lasting: bool = True  # whether another look at the same file would tell the same


def examine(path: str) -> Finding:
    """Decode a video, or all pictures of a folder, and tell what is wrong with it."""
    file = Path(path)
    try:
        status = file.stat()
    except OSError as error:
        return Finding(path=path, reason=error.strerror or str(error), lasting=False)
    blank = Finding(path=path, size=status.st_size, modified=status.st_mtime_ns)
    try:
        # The pictures in a folder may change without it.
        return replace(_pictures(file, blank), lasting=False) if file.is_dir() else _video(file, blank)
    except VideoError as error:
        refused = type(error.__cause__) is PermissionError
        return replace(blank, reason=error.reason, lasting=not refused)
    finally:
        forget()


def _video(path: Path, blank: Finding) -> Finding:
    with retold(path):
        content = _hash(path)
    opening = look(path)
    damages: list[int] = []
    count, first, last = 0, [], 0.0
    with retold(path), closing(decoded(path, damages=damages)) as frames:
        for frame in frames:
            if count < COMPARED:
                first.append(frame.to_ndarray(format="rgb24"))
            count += 1
            last = frame.time or 0.0
    reason = damage(path, frames=count, expected=opening.info.frames, breaks=damages, last=last)
    seconds = round(count / (opening.info.fps or 1), 3)
    beginning = _beginning(first)
    return replace(blank, frames=count, seconds=seconds, content=content, beginning=beginning, reason=reason)


def _pictures(folder: Path, blank: Finding) -> Finding:
    told, first = hashlib.blake2b(digest_size=16), []
    with retold(folder):
        files = pictures_of(folder)
        for number, file in enumerate(files):
            told.update(file.read_bytes())
            shown = picture(file)  # decoded also where it is not compared
            if number < COMPARED:
                first.append(shown)
    return replace(blank, frames=len(files), content=told.hexdigest(), beginning=_beginning(first))


def _hash(path: Path) -> str:
    told = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            told.update(chunk)
    return told.hexdigest()


def _beginning(pictures: list[np.ndarray]) -> str | None:
    """Many a video begins black; that is no sign of a copy."""
    if all(np.ptp(picture, axis=(0, 1)).max() == 0 for picture in pictures):
        return None
    told = hashlib.blake2b(digest_size=16)
    for shown in pictures:
        told.update(np.ascontiguousarray(shown).tobytes())
    return told.hexdigest()
