"""A cache of decoded frames, for small data sets whose decoding costs more than a training step.

F frames, H height, W width, C channels. The cache holds all frames of a video, or of the segment that a list
names, as decoded. Clips are cut from them, so that a run with a cache equals a run without it to the bit. The
processes of a machine share one folder: in memory, where the last process removes the frames, or on the disk,
where they stay.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import psutil
import torch
from filelock import FileLock
from torch import Tensor

from everest.data.footage import FrameSpan, frame_bytes, frame_span
from everest.errors import EnvironmentProblem
from everest.lists.sample import Sample
from everest.system.processes import free_host_memory
from everest.video.facts import keep_facts_in
from everest.video.images import video_files
from everest.video.reader import VideoError, read_frames
from everest.video.source import Video, as_video, video_version

MEMORY_FOLDER: Final = Path("/dev/shm")  # files in memory (Linux)
LOCK_NAME: Final = ".lock"  # a file, held while a process enters or leaves
MAX_VIDEO_BYTES: Final = 2**30  # bytes of a cached video; a longer one is decoded again each time
MAX_FILLED_SHARE: Final = 0.9  # the share of the free space that may be filled
NUM_MEASURED: Final = 16  # videos or segments from which the size of all is estimated


@dataclass(frozen=True, slots=True)
class FrameCache:
    """A folder with a file of frames for every video. Several processes may fill it at once."""

    folder: Path

    def read(
        self, path: str | Video, ids: Sequence[int], *, span: FrameSpan, decoder: str, channels: int = 3
    ) -> Tensor:
        """Like `read_frames`, but decodes all frames of the span the first time, and caches them.

        Args:
            ids: indices of frames of the video, within the span.
            span: the frames to cache.
        Returns:
            (len(ids), H, W, C) uint8.
        """
        video = as_video(path)
        file = self._file(video, span, decoder, channels)
        positions = np.asarray(ids) - span[0]
        with suppress(OSError, ValueError, EOFError):  # missing or incomplete
            return torch.from_numpy(np.load(file, mmap_mode="r")[positions])
        free = 0.0
        with suppress(OSError):  # the folder may be gone
            free = MAX_FILLED_SHARE * psutil.disk_usage(str(self.folder)).free
        if frame_bytes(video, span[1], channels) <= min(MAX_VIDEO_BYTES, free):
            with suppress(VideoError):  # damaged somewhere: the requested frames may be intact
                wanted = range(span[0], sum(span))
                frames = read_frames(video, wanted, decoder=decoder, channels=channels)  # (F, H, W, C)
                _save(file, frames.numpy())
                return frames[positions]
        return read_frames(video, ids, decoder=decoder, channels=channels)

    def _file(self, video: Video, span: FrameSpan, decoder: str, channels: int) -> Path:
        """The file for a span of a video; its name changes with the video's version and the decoder."""
        absolute = video.absolute() if isinstance(video, Path) else video
        try:
            versions = [(str(file), *video_version(file)) for file in video_files(absolute)]
        except OSError as error:
            raise VideoError(absolute, error.strerror or str(error)) from error
        key = repr((versions, span, decoder, channels))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def cache_folder() -> Path:
    """The folder for files that can be made again: EVEREST_CACHE, else the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EVEREST_CACHE") or usual / "everest")


def keep_facts_in_cache() -> None:
    """Keep the facts about video files in the cache folder from now on (everest.video.facts)."""
    with suppress(RuntimeError):  # a user without a home
        keep_facts_in(cache_folder() / "indexes")


def open_cache(
    kind: Literal["none", "memory", "disk"], samples: Sequence[Sample], *, channels: int = 3
) -> FrameCache | None:
    """Open the cache that `data.cache` names for different samples; EnvironmentProblem if it has no room."""
    if kind == "none":
        return None
    folder = MEMORY_FOLDER / f"everest-{os.getuid()}" if kind == "memory" else cache_folder() / "frames"
    alternatives = "'none'" if kind == "disk" else "'disk' or 'none'"
    try:
        folder.mkdir(parents=kind == "disk", exist_ok=True)  # without MEMORY, only 'disk' is possible
        if kind == "memory":
            mark = folder / f"{os.getpid()}.user"  # this process uses the folder
            with FileLock(folder / LOCK_NAME):
                mark.touch()
            atexit.register(_leave, mark)
        sizes = []  # bytes of the frames of some videos
        for sample in samples[:: max(len(samples) // NUM_MEASURED, 1)]:
            with suppress(VideoError):  # reported when it is read
                sizes.append(frame_bytes(sample.video, frame_span(sample)[1], channels))
        needed = len(samples) * float(np.mean([size * (size <= MAX_VIDEO_BYTES) for size in sizes] or [0]))
        cached = sum(file.stat().st_size for file in folder.glob("*.npy"))  # perhaps of these videos
        free = psutil.disk_usage(str(folder)).free
        if kind == "memory":
            free = min(free, free_host_memory())
        if needed - cached > MAX_FILLED_SHARE * free:
            raise EnvironmentProblem(
                f"data.cache: the frames of {len(samples)} videos need about {needed / 2**30:.2g} GiB, "
                f"{folder} has {free / 2**30:.2g} GiB free; use {alternatives}"
            )
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentProblem(f"data.cache: cannot use {folder}: {reason}; use {alternatives}") from error
    return FrameCache(folder)


def _leave(mark: Path) -> None:
    """Remove the mark of this process from a folder in memory; the last process to leave removes the frames.

    The folder itself and its lock stay, so that no process loses the folder that it enters.
    """
    if mark.stem != str(os.getpid()):  # a worker inherits this handler
        return
    with FileLock(mark.with_name(LOCK_NAME)):
        mark.unlink(missing_ok=True)
        if not any(psutil.pid_exists(int(other.stem)) for other in mark.parent.glob("*.user")):
            for file in mark.parent.glob("*.*"):
                if file.name != LOCK_NAME:
                    file.unlink(missing_ok=True)  # a reader of a killed run may rename it


def _save(file: Path, frames: np.ndarray) -> None:
    """Write atomically; if there is no space, the next epoch decodes the video again."""
    with suppress(OSError):
        descriptor, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                np.save(opened, frames)
                opened.flush()
                os.fsync(descriptor)
            Path(part).replace(file)
        except OSError:
            Path(part).unlink(missing_ok=True)
