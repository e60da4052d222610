"""Facts about video files on the disk, so that a process need not read the packets of each file again.

One small file for each video, named by a hash of its path, size, times and inode: a changed video has another
name. Files are renamed into place when they are complete, and a damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

RULES: Final = 3  # to be raised with every change of the facts or of how they are found
NUMBERS: Final = np.dtype("<i8")

Facts = tuple[dict[str, Any], list[np.ndarray]]  # values for JSON, and int64 arrays


class IndexStore:
    """A folder of facts. Several processes may fill it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file_of(self, video: Path) -> Path:
        """Returns the file for a video as it is now.

        Raises:
            OSError: there is no such video.
        """
        video, status = video.absolute(), video.stat()
        times = status.st_mtime_ns, status.st_ctime_ns  # the second cannot be set
        version = (RULES, av.__version__, str(video), status.st_size, *times, status.st_ino)
        name = hashlib.sha256(repr(version).encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    def read(self, file: Path) -> Facts | None:
        """Returns the facts in a file; None if it is missing or damaged."""
        with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):
            header, _, numbers = zlib.decompress(file.read_bytes()).partition(b"\n")
            values = json.loads(header)
            lengths = values.pop("lengths")
            steps = np.frombuffer(numbers, dtype=NUMBERS)
            if min(lengths) >= 0 and sum(lengths) == steps.size:
                parts = np.split(steps, np.cumsum(lengths)[:-1])
                return values, [np.cumsum(part, dtype=np.int64) for part in parts]
        return None

    def write(self, file: Path, values: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
        """Write the facts; without space or permission, they are found again next time."""
        header = json.dumps(values | {"lengths": [len(array) for array in arrays]}).encode()
        # Differences are small or equal numbers, which take a tenth of the space.
        steps = [np.diff(array, prepend=np.int64(0)).astype(NUMBERS).tobytes() for array in arrays]
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        with suppress(OSError):
            part.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(zlib.compress(header + b"\n" + b"".join(steps), level=1))
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
