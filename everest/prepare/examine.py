"""Whether all of a video could be decoded that it says it has.

A look at a whole video: every frame is decoded, none is kept. Runs in processes of its own.

The findings of a check, written as they come, so that a check that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import numpy as np

from everest.errors import RecipeError
from everest.system.files import write_error
from everest.video.file import clear_video_cache, inspect_video
from everest.video.folders import as_data_error
from everest.video.reader import image_frames, read_image
from everest.video.source import Video
from everest.video.stream import VideoError, as_video_error, declared_seconds, decode_frames

# Ours: of what a file promises so much, and such a share of it, may be missing.
CUT_SECONDS: Final = 1.0
CUT_SHARE: Final = 0.1


def damage(video: Video, *, frames: int, expected: int, breaks: Sequence[int], last: float) -> str | None:
    """What is wrong with a file that was decoded from its first frame on; None where nothing is.

    Args:
        frames: how many came.
        expected: how many its packets tell.
        breaks: the packets at which decoding ended (`damages` of `decode_frames`).
        last: seconds at which the last frame is shown.
    """
    if frames < expected:
        return f"damaged: {frames} of {expected} frames can be decoded"
    if breaks:
        return f"damaged: breaks off after {frames} frames"
    promised = declared_seconds(video)
    if promised - last > max(CUT_SECONDS, CUT_SHARE * promised):
        return f"damaged: ends after {last:.1f} of {promised:.1f} s"
    return None


COMPARED: Final = 8  # ours: frames at the beginning by which copies in other files are known
_CHUNK: Final = 2**20  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class Inspection:
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


def examine(path: str) -> Inspection:
    """Decode a video, or all pictures of a folder, and tell what is wrong with it."""
    file = Path(path)
    try:
        status = file.stat()
    except OSError as error:
        return Inspection(path=path, reason=error.strerror or str(error), lasting=False)
    blank = Inspection(path=path, size=status.st_size, modified=status.st_mtime_ns)
    try:
        # The pictures in a folder may change without it.
        return replace(_pictures(file, blank), lasting=False) if file.is_dir() else _video(file, blank)
    except VideoError as error:
        refused = type(error.__cause__) is PermissionError
        return replace(blank, reason=error.reason, lasting=not refused)
    finally:
        clear_video_cache()


def _video(path: Path, blank: Inspection) -> Inspection:
    with as_video_error(path):
        content = _hash(path)
    opening = inspect_video(path)
    damages: list[int] = []
    count, first, last = 0, [], 0.0
    with as_video_error(path), closing(decode_frames(path, damages=damages)) as frames:
        for frame in frames:
            if count < COMPARED:
                first.append(frame.to_ndarray(format="rgb24"))
            count += 1
            last = frame.time or 0.0
    reason = damage(path, frames=count, expected=opening.info.frames, breaks=damages, last=last)
    seconds = round(count / (opening.info.fps or 1), 3)
    beginning = _beginning(first)
    return replace(blank, frames=count, seconds=seconds, content=content, beginning=beginning, reason=reason)


def _pictures(folder: Path, blank: Inspection) -> Inspection:
    told, first = hashlib.blake2b(digest_size=16), []
    with as_video_error(folder):
        files = image_frames(folder)
        for number, file in enumerate(files):
            told.update(file.read_bytes())
            shown = read_image(file)  # decoded also where it is not compared
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
    if all(np.ptp(pixels, axis=(0, 1)).max() == 0 for pixels in pictures):
        return None
    told = hashlib.blake2b(digest_size=16)
    for shown in pictures:
        told.update(np.ascontiguousarray(shown).tobytes())
    return told.hexdigest()


NAME: Final = "checked_videos.jsonl"
_SYNC_SECONDS: Final = 1.0  # a killed process loses nothing, a machine that loses power at most so much


class Journal:
    """Findings in a file, a line each. Use as a context.

    Raises:
        RecipeError: the file is there and is none.
        EnvironmentProblem: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._synced = 0.0

    def __enter__(self) -> Journal:
        kept = _read(self._path)
        self.findings = {finding.path: finding for finding, _ in kept}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what failed is not written again later.
            self._file: IO[bytes] = self._path.open("ab", buffering=0)
            self._file.truncate(sum(length for _, length in kept))  # half a line that a kill left
        except OSError as error:
            raise write_error(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, paths: Iterable[str]) -> dict[str, Inspection]:
        """What was found of those files that are still the same."""
        return {path: found for path in paths if (found := self.findings.get(path)) and _still_holds(found)}

    def add(self, finding: Inspection) -> None:
        """Append a finding."""
        try:
            line = json.dumps(asdict(finding)).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise write_error(self._path, error) from error


def _read(path: Path) -> list[tuple[Inspection, int]]:
    """The whole lines of a journal, and their lengths in bytes."""
    if not path.exists():
        return []
    with as_data_error(path):
        lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [(Inspection(**json.loads(line)), len(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: is no journal of a check; remove it, or use --output DIR") from error


def _still_holds(finding: Inspection) -> bool:
    try:
        status = Path(finding.path).stat()
    except OSError:
        return False
    return finding.lasting and (status.st_size, status.st_mtime_ns) == (finding.size, finding.modified)
