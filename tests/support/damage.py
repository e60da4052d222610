"""Videos with a hole; full disks."""

from contextlib import suppress
from pathlib import Path


def with_hole(video: Path, fraction: float, file: Path, *, size: int = 60) -> Path:
    """A copy of a video without `size` bytes from a fraction of it on."""
    content = bytearray(video.read_bytes())
    begin = int(fraction * len(content))
    content[begin : begin + size] = b"\xff" * size
    file.write_bytes(content)
    return file


def fill(disk: Path) -> Path:
    """Fill a disk; returns the file that does, which can be removed."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast
