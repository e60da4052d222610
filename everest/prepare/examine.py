"""Decode a video completely and report what is wrong with it, and how long it is. No frame is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median

from everest.data.footage import Timeline, num_timeline_frames
from everest.lists.sample import Sample
from everest.video.decoding import Loss, decode_frames
from everest.video.file import clear_video_cache, inspect_video
from everest.video.reader import TOLERANCE, image_frames, known_damage, probe, read_image
from everest.video.source import Video
from everest.video.stream import VideoError, as_video_error

_digest = partial(hashlib.blake2b, digest_size=16)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of decoding a video. Its fields are the keys of `checked_videos.jsonl`."""

    path: str
    size: int = 0  # bytes; with `modified`, identifies the version of the file
    modified: int = 0  # nanoseconds since 1970
    frames: int = 0
    seconds: float | None = None  # until the last frame ends; None: a folder of images, or no video
    content: str | None = None  # hash of the bytes
    reason: str | None = None  # why it cannot be used
    lasting: bool = True  # whether decoding the same file again would give the same result

    def is_current(self) -> bool:
        """Whether the file is still the one that was decoded, and the result still holds."""
        try:
            status = Path(self.path).stat()
        except OSError:
            return False
        return self.lasting and (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def examine(path: str) -> Inspection:
    """Decode a video, or all images of a folder, and report what is wrong with it."""
    file = Path(path)
    try:
        status = file.stat()
    except OSError as error:
        return Inspection(path=path, reason=error.strerror or str(error), lasting=False)
    blank = Inspection(path=path, size=status.st_size, modified=status.st_mtime_ns)
    try:
        if file.is_dir():
            digest = _digest()
            with as_video_error(file):
                images = image_frames(file)
                for image in images:
                    digest.update(image.read_bytes())
                    read_image(image)  # to find damage
            # The images of a folder can change while the folder's size and time stay.
            return replace(blank, frames=len(images), content=digest.hexdigest(), lasting=False)
        with as_video_error(file), file.open("rb") as opened:
            content = hashlib.file_digest(opened, _digest).hexdigest()
        inspect_video(file)  # names what is no video
        losses: list[Loss] = []
        with closing(decode_frames(file, losses=losses)) as frames:
            count = sum(1 for _ in frames)
        return replace(
            blank,
            frames=count,
            seconds=round(Timeline.of(file).end, 6),
            content=content,
            reason=damage(file, frames=count, losses=losses),
        )
    except VideoError as error:
        return replace(blank, reason=error.reason, lasting=type(error.__cause__) is not PermissionError)
    finally:
        clear_video_cache()


def damage(video: Video, *, frames: int, losses: Sequence[Loss]) -> str | None:
    """Describe the damage of a file that was decoded completely; None if there is none.

    Args:
        frames: the number of decoded frames.
        losses: of `decode_frames`.
    """
    known, expected = known_damage(video), probe(video).frames
    if known is None and frames < expected:
        return f"damaged: {frames} of {expected} frames can be decoded"
    if known is None and losses:
        return f"damaged after {losses[0].frames} frames"
    return known


def min_median_max(values: Sequence[float]) -> dict[str, float] | None:
    """Minimum, median and maximum; None for no values."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def num_frames(sample: Sample, frames: int, seconds: float | None, fps: float | None = None) -> int:
    """Frames of a sample: of the file, or of its segment; not positive if the segment is outside the file.

    Args:
        frames: of the file.
        seconds: of the file; None: a folder of images.
        fps: frames per second to count; None: as the file.
    """
    if fps is not None and seconds:
        inside = num_frames(sample, frames, seconds)
        return num_timeline_frames(inside / frames * seconds, fps) if inside > 0 else inside
    rate = frames / seconds if seconds else 0.0

    def at(time: float) -> int:
        """The first frame that is shown at or after a time, as a clip is read; at most `frames`."""
        return min(ceil((time - TOLERANCE) * rate), frames)

    first = sample.start_frame or at(sample.start or 0)
    end = frames if sample.end_frame is None else min(sample.end_frame, frames)
    if sample.end is not None:
        end = at(sample.end)
    return end - first
