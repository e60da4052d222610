"""Encode a video so that it is fast to read: small frames, close keyframes, the same frames and times.

H height, W width. The frames are upright, and the same as everest.video.reader counts. Their times are the
source's, starting at 0, so that a segment in frames or in seconds means the same part of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from everest.prepare.examine import damage
from everest.system.files import atomic_file
from everest.system.storage import Location, parse_location
from everest.video.decoding import Loss, decode_frames
from everest.video.folders import images_in
from everest.video.reader import TimedFrame, image_folder, probe, read_image, resized_frames, video_files
from everest.video.source import Video, video_version
from everest.video.stream import VideoError, as_video_error
from everest.video.writer import Codec, read_comment, write_timed_frames

FPS_OF_IMAGES: Final = 25  # as everest.video.file assumes if the rate is unknown
LARGEST_RATE: Final = 1001  # denominator: 30000/1001 is the most uneven rate in use
_MAKER: Final = "everest prepare encode"
_SOURCE_BYTES: Final = "source_bytes"
_SOURCE: Final = "source"  # hash of its path
_VERSION: Final = "version"  # of the source, as `video_version` reports it


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How videos are encoded."""

    short_side: int  # pixels; smaller videos keep their size
    codec: Codec


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file that was encoded."""

    path: Path
    is_new: bool  # not by an earlier call
    source_bytes: int
    bytes: int


def encode_video(source: str, target: Path, settings: EncodeSettings, *, overwrite: bool) -> EncodedFile:
    """Encode a video, unless an earlier call has encoded it to `target` with the same settings."""
    video = parse_location(source)
    with as_video_error(video):
        versions = [video_version(file) for file in video_files(video)]
        place = hashlib.sha256(str(video.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    size = sum(number for number, _ in versions)
    version = max((text for _, text in versions), default="")
    by_settings = {"by": _MAKER, **asdict(settings)}
    mark = {**by_settings, _SOURCE_BYTES: size, _VERSION: version, _SOURCE: place}  # kept in the file
    if target.exists():
        if isinstance(video, Path) and target.samefile(video):
            raise VideoError(video, "would be written over itself; choose another --output")
        earlier: Any = None  # the mark in the file; not all comments are JSON
        with suppress(ValueError):
            earlier = json.loads(read_comment(target))
        if isinstance(earlier, dict) and earlier.items() >= by_settings.items() and not overwrite:
            if earlier.get(_SOURCE_BYTES) == size and earlier.get(_VERSION) == version:
                return EncodedFile(target, False, size, target.stat().st_size)
            if earlier.get(_SOURCE) != place:
                raise VideoError(
                    video,
                    f"{target} is the encoded file of another video; choose another --output, or use "
                    "--overwrite",
                )
        if not (isinstance(earlier, dict) and earlier.get("by") == _MAKER) and not overwrite:
            raise VideoError(video, f"{target} is there and not by this command; use --overwrite")
    with atomic_file(target) as part:
        _write(video, part, settings, mark)
    return EncodedFile(target, True, size, target.stat().st_size)


def encoded_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(H, W) with the shorter side at most `short_side`, both even, as yuv420p needs; never larger."""
    shorter = min(height, width)
    target = min(short_side, shorter)
    return (max(height * target // shorter // 2 * 2, 2), max(width * target // shorter // 2 * 2, 2))


def _write(video: Video, part: Path, settings: EncodeSettings, mark: dict[str, Any]) -> None:
    """Encode all frames, and decode the result to verify that none is missing."""
    info = probe(video)
    rate = Fraction(info.fps or FPS_OF_IMAGES).limit_denominator(LARGEST_RATE)
    folder = image_folder(video)
    losses: list[Loss] = []
    if folder:
        timed_frames = _image_frames(folder, settings.short_side)
    else:
        size = encoded_size(info.height, info.width, settings.short_side)
        timed_frames = resized_frames(video, size, rate, losses=losses)
    with closing(timed_frames) as frames:
        written = write_timed_frames(
            part,
            frames,
            rate,
            codec=settings.codec,
            comment=json.dumps(mark),
        )
    if not folder:
        reason = damage(video, frames=written, losses=losses)
        if reason:
            raise VideoError(video, reason)
    with closing(decode_frames(part)) as frames:
        decoded = sum(1 for _ in frames)
    if decoded != info.frames:
        raise VideoError(video, f"has {info.frames} frames, of the encoded ones {decoded} can be decoded")


def _image_frames(folder: Location, short_side: int) -> Generator[TimedFrame]:
    """The images of a folder, resized."""
    with as_video_error(folder):
        files = images_in(folder)
    for number, file in enumerate(files):
        with as_video_error(file):
            pixels = read_image(file)
        height, width = encoded_size(pixels.shape[0], pixels.shape[1], short_side)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        yield TimedFrame(np.asarray(image), number, Fraction(1, FPS_OF_IMAGES))
