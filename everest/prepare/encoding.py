"""How `everest prepare encode` encodes; without the libraries that do it, so that help answers at once.

One video again as H.264 that is fast to read: smaller frames, close keyframes; the same frames and times.

H height, W width. Frames are those that everest.data.video counts, upright. Their times are the source's,
from 0 on, so that a segment in frames or in seconds names the same part of both.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import av
import numpy as np
from av import VideoFrame
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from everest.prepare.encode_settings import EncodeSettings
from everest.prepare.examine import damage
from everest.system.files import write_atomically
from everest.system.storage import Location
from everest.video.file import look
from everest.video.folders import pictures_in
from everest.video.reader import picture, picture_folder, probe
from everest.video.source import Video, as_video, version
from everest.video.stream import VideoError, as_video_error, decoded
from everest.video.writer import add_h264

FPS_OF_PICTURES: Final = 25  # as everest.data.video_file takes where nothing tells
LARGEST_RATE: Final = 1001  # denominator: 30000/1001 is the least even rate in use
_MAKER: Final = "everest prepare encode"
_SOURCE_BYTES: Final = "source_bytes"


class _Picture(NamedTuple):
    pixels: np.ndarray  # (H, W, 3) uint8
    time: int  # in units of `unit` seconds
    unit: Fraction


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file that was encoded."""

    path: Path
    is_new: bool  # not by an earlier call
    source_bytes: int
    bytes: int


def encode_video(source: str, target: Path, settings: EncodeSettings, *, overwrite: bool) -> EncodedFile:
    """Encode a video, unless `target` is that already.

    Raises:
        VideoError: not all frames can be decoded, or `target` is a file that no earlier call wrote.
        EnvironmentProblem: the file cannot be written.
    """
    video = as_video(source)
    with as_video_error(video):
        mark = _mark(video, settings)
    if target.exists():
        if isinstance(video, Path) and target.samefile(video):
            raise VideoError(video, "would be written over itself; choose another --output")
        found = _found_mark(target)
        if found == mark and not overwrite:
            return EncodedFile(target, False, mark[_SOURCE_BYTES], target.stat().st_size)
        if found.get("by") != _MAKER and not overwrite:
            raise VideoError(video, f"{target} is there and not by this command; use --overwrite")
    write_atomically(target, lambda part: _write(video, part, settings, mark))
    return EncodedFile(target, True, mark[_SOURCE_BYTES], target.stat().st_size)


def encoded_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(H, W) with the shorter side at most `short_side`, both even, as yuv420p needs; never larger."""
    shorter = min(height, width)
    target = min(short_side, shorter)
    return (max(height * target // shorter // 2 * 2, 2), max(width * target // shorter // 2 * 2, 2))


def _mark(video: Video, settings: EncodeSettings) -> dict[str, Any]:
    """What the file says of how it was made."""
    folder = picture_folder(video)
    files = [video] if folder is None else pictures_in(folder)
    return {"by": _MAKER, **asdict(settings), _SOURCE_BYTES: sum(version(file)[0] for file in files)}


def _found_mark(target: Path) -> dict[str, Any]:
    try:
        with av.open(str(target)) as container:
            told = json.loads(container.metadata.get("comment", "{}"))
    except (FFmpegError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write(video: Video, part: Path, settings: EncodeSettings, mark: dict[str, Any]) -> None:
    """Encode all frames, and decode the result to see that they are there."""
    count = probe(video).frames
    rate = Fraction(probe(video).fps or FPS_OF_PICTURES).limit_denominator(LARGEST_RATE)
    folder = picture_folder(video)
    breaks: list[int] = []
    shown = (
        _of_folder(folder, settings.short_side) if folder else _of_file(video, settings.short_side, breaks)
    )
    with closing(shown) as pictures:
        written = _encode(pictures, part, rate, settings, comment=json.dumps(mark))
    reason = None if folder else _damage(video, frames=written, breaks=breaks)
    if reason:
        raise VideoError(video, reason)
    with closing(decoded(part)) as frames:
        read = sum(1 for _ in frames)
    if read != count:
        raise VideoError(video, f"has {count} frames, of the encoded ones {read} can be decoded")


def _damage(video: Video, *, frames: int, breaks: list[int]) -> str | None:
    opening = look(video)
    times = opening.index.times
    last = float(times[-1]) / opening.second if times.size and not opening.index.by_decode_stamp else 0.0
    return damage(video, frames=frames, expected=opening.info.frames, breaks=breaks, last=last)


def _encode(
    pictures: Iterator[_Picture], part: Path, rate: Fraction, settings: EncodeSettings, *, comment: str
) -> int:
    """Write pictures as they come, at their times; how many there were."""
    written = 0
    # The index in front: a file can be read before all of it has come.
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(str(part), "w", format="mp4", container_options=options) as container:
        container.metadata["comment"] = comment
        stream = None
        for shown in pictures:
            if stream is None:
                height, width, _ = shown.pixels.shape
                tune = "fastdecode" if settings.fast_decode else None
                stream = add_h264(
                    container, rate, (height, width), crf=settings.crf, gop=settings.gop, tune=tune
                )
                stream.codec_context.time_base = shown.unit
            frame = VideoFrame.from_ndarray(shown.pixels, format="rgb24")
            frame.pts, frame.time_base = shown.time, shown.unit
            container.mux(stream.encode(frame))
            written += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return written


def _of_file(video: Video, short_side: int, breaks: list[int]) -> Generator[_Picture]:
    """All frames of a file up to the first damage, which `breaks` takes, upright and in their new size."""
    opening = look(video)
    size = encoded_size(opening.info.height, opening.info.width, short_side)
    height, width = size[::-1] if opening.quarter_turns % 2 else size  # before it is turned
    times = opening.index.times
    stamped = times.size > 0 and not opening.index.by_decode_stamp
    numbers = {int(time) for time in times} if stamped else set()
    unit = 1 / Fraction(opening.info.fps or FPS_OF_PICTURES).limit_denominator(LARGEST_RATE)
    scaler = VideoReformatter()
    with as_video_error(video), closing(decoded(video, damages=breaks)) as frames:
        for count, frame in enumerate(frames):
            if stamped and frame.pts not in numbers:
                continue
            scaled = scaler.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
            )
            pixels = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), opening.quarter_turns))
            if stamped and frame.pts is not None and frame.time_base is not None:
                yield _Picture(pixels, frame.pts - int(times[0]), frame.time_base)
            else:
                yield _Picture(pixels, count, unit)


def _of_folder(folder: Location, short_side: int) -> Generator[_Picture]:
    unit = Fraction(1, FPS_OF_PICTURES)
    with as_video_error(folder):
        files = pictures_in(folder)
    for number, file in enumerate(files):
        with as_video_error(file):
            pixels = picture(file)
        height, width = encoded_size(pixels.shape[0], pixels.shape[1], short_side)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        yield _Picture(np.asarray(image), number, unit)
