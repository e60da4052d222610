"""Decoded frames kept for the next epoch: for small sets whose decoding costs more than their training step.

F frames, H height, W width. What is kept are all frames of a video, or of the segment that a list names, as
decoded; a clip is cut from them, so that a run with a cache equals the run without to the bit. The processes
of a machine share one folder: in memory, where it goes with the last of them, or on the disk, where it stays.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from everest.errors import EnvironmentProblem
from everest.video.folders import images_in
from everest.video.reader import VideoError, image_folder, probe, read_frames
from everest.video.source import Video, as_video, video_version

MEMORY: Final = Path("/dev/shm")  # files in memory (Linux)
LARGEST: Final = 2**30  # bytes of a video that is kept; a longer one is decoded anew each time
SHARE: Final = 0.9  # of the free room that may be filled
LOOKED_AT: Final = 16  # videos or segments from which the room that all need is told

Span = tuple[int, int]  # number of the first frame, and how many
Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class FrameCache:
    """A folder with a file of frames for every video. It may be filled by several processes at once."""

    folder: Path

    def read(self, path: str | Video, ids: Sequence[int], *, span: Span, decoder: str) -> Tensor:
        """As `read_frames`, the first time by decoding all frames of the span.

        Args:
            ids: numbers in the video, within the span.
            span: which frames to keep.
        Returns:
            (len(ids), H, W, 3) uint8.
        Raises:
            VideoError: one of the frames does not exist or is damaged.
        """
        path = as_video(path)
        file = self.folder / f"{_key(path, span)}.npy"
        frames = _load(file)
        if frames is None and frame_bytes(path, span[1]) <= LARGEST:
            with suppress(VideoError):  # damaged somewhere: what is asked for may lie before
                frames = read_frames(path, range(span[0], sum(span)), decoder=decoder).numpy()
                _save(file, frames)
        if frames is None:
            return read_frames(path, ids, decoder=decoder)
        return torch.from_numpy(frames[np.asarray(ids) - span[0]])


def open_cache(
    kind: Literal["none", "memory", "disk"], samples: Sequence[Sample], bytes_of: Callable[[Sample], int]
) -> FrameCache | None:
    """The cache that `data.cache` names.

    Args:
        samples: videos, or segments of them, each once.
        bytes_of: how many the frames of one take (`frame_bytes`); VideoError where it cannot be read.
    Raises:
        EnvironmentProblem: no such memory here, or the videos need more room than there is.
    """
    if kind == "none":
        return None
    folder = _in_memory() if kind == "memory" else _on_disk()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_too_much(kind, folder, samples, bytes_of)
    except OSError as error:
        raise EnvironmentProblem(f"data.cache: cannot use {folder}: {error.strerror or error}") from error
    if kind == "memory":
        _keep_while_used(folder)
    return FrameCache(folder)


def _on_disk() -> Path:
    """EVEREST_CACHE, or where programs keep what they can make again."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EVEREST_CACHE") or usual / "everest") / "frames"


def _in_memory() -> Path:
    if not MEMORY.is_dir():
        raise EnvironmentProblem(f"data.cache: no {MEMORY} here, which 'memory' needs; use 'disk'")
    return MEMORY / f"everest-{os.getuid()}"


def _keep_while_used(folder: Path) -> None:
    """Mark the folder as used by this process; whoever leaves last removes it, and what killed ones left."""
    mark = folder / f"{os.getpid()}.user"
    mark.touch()
    owner = os.getpid()

    def leave() -> None:
        if os.getpid() != owner:  # a worker inherits this
            return
        mark.unlink(missing_ok=True)
        if not any(psutil.pid_exists(int(other.stem)) for other in folder.glob("*.user")):
            for file in folder.glob("*"):  # none where another cache of this process removed it
                file.unlink(missing_ok=True)
            with suppress(OSError):  # somebody came in between
                folder.rmdir()

    atexit.register(leave)


def _refuse_too_much(
    kind: str, folder: Path, samples: Sequence[Sample], bytes_of: Callable[[Sample], int]
) -> None:
    sizes = []
    for sample in samples[:: max(len(samples) // LOOKED_AT, 1)]:
        with suppress(VideoError):  # told when its turn comes
            sizes.append(bytes_of(sample))
    needed = len(samples) * float(np.mean([size for size in sizes if size <= LARGEST] or [0]))
    there = sum(file.stat().st_size for file in folder.glob("*.npy"))  # perhaps of these videos
    free = psutil.disk_usage(str(folder)).free
    if kind == "memory":
        free = min(free, psutil.virtual_memory().available)
    if needed - there > SHARE * free:
        other = "'none'" if kind == "disk" else "'disk' or 'none'"
        raise EnvironmentProblem(
            f"data.cache: the frames of {len(samples)} videos need about {needed / 2**30:.2g} GiB, "
            f"{folder} has {free / 2**30:.2g} GiB free; use {other}"
        )


def frame_bytes(path: Video, frames: int) -> int:
    """What so many frames of a video take as decoded."""
    info = probe(path)
    return frames * info.height * info.width * 3


def _key(path: Video, span: Span) -> str:
    """Changes with the file: a rewritten video is another."""
    path = path.absolute() if isinstance(path, Path) else path
    folder = image_folder(path)
    files = [path] if folder is None else images_in(folder)
    try:
        told = [(str(file), *video_version(file)) for file in files]
    except OSError as error:
        raise VideoError(path, error.strerror or str(error)) from error
    return hashlib.sha256(repr((told, span)).encode()).hexdigest()[:32]


def _load(file: Path) -> np.ndarray | None:
    """(F, H, W, 3) uint8, read where it is touched; None where there is none, or no whole one."""
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None


def _save(file: Path, frames: np.ndarray) -> None:
    """Write, whole or not at all; where there is no room, the next epoch decodes again."""
    with suppress(OSError):
        if frames.nbytes > SHARE * psutil.disk_usage(str(file.parent)).free:
            return
        descriptor, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                np.save(opened, frames)
                opened.flush()
                os.fsync(descriptor)
            Path(part).replace(file)
        except OSError:
            Path(part).unlink(missing_ok=True)
