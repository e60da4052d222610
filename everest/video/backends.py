"""Back-ends that decode: each gives the frames of a file by their numbers, the same ones or an error.

H height, W width. PyAV reads everything and is always there. decord and torchcodec refuse the files on which
they are known to be wrong (everest.video.index); `auto` never asks them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

import numpy as np
from av.video.reformatter import VideoReformatter

from everest.errors import EnvironmentProblem
from everest.video.counted import decode_stamp
from everest.video.file import VideoFile, inspect_video
from everest.video.source import Video, decoder_input
from everest.video.stream import SKIPPING_CODECS, VideoError, decode_frames

Read = Callable[[Video, list[int]], dict[int, np.ndarray]]

SMALL: Final = 400 * 300  # pixels of a frame; above it nothing was faster than PyAV (docs/performance.md)


def read_auto(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """By the back-end that was measured to be the fastest of those that are exact on this file.

    That is PyAV where it can leave frames out; where every frame must be decoded, torchcodec, on small ones.
    """
    opening = inspect_video(path)
    small = opening.info.height * opening.info.width <= SMALL
    is_exact = "torchcodec" in opening.exact
    if small and is_exact and opening.codec not in SKIPPING_CODECS and torchcodec_works():
        with suppress(VideoError):  # damaged: PyAV reads up to there
            return read_torchcodec(path, wanted)
    return read_pyav(path, wanted)


def read_pyav(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """Number to picture (H, W, 3) of those of the `wanted` frames (ascending) that can be decoded."""
    opening = inspect_video(path)
    found: dict[int, np.ndarray] = {}
    for seek, run in opening.index.runs(wanted):
        found |= dict(_shown(path, opening, seek, run))
    missing = [i for i in wanted if i not in found]
    if missing:  # a seek may land behind its target, or behind what the target refers to
        found |= dict(_shown(path, opening, None, missing, plainly=True))
    return found


def pyav_in_order(path: Video, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Number and picture of the `wanted` frames (ascending), up to the first that cannot be decoded."""
    opening = inspect_video(path)
    for seek, run in opening.index.runs(wanted):
        done = 0
        for start, plainly in ((seek, False), (None, True)):  # as read_pyav
            for number, picture in _shown(path, opening, start, run[done:], plainly=plainly):
                if number != run[done]:
                    break
                yield number, picture
                done += 1
            if done == len(run):
                break
        else:
            return


def _shown(
    path: Video, opening: VideoFile, seek: int | None, wanted: list[int], *, plainly: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode from `seek` on; number and picture of the `wanted` frames as they are shown, up to the last.

    Args:
        plainly: decode every frame on the way: after some keyframes frames refer to what lies before them.
    """
    times = opening.index.times
    numbers: dict[int | None, int] = {int(times[i]) if times.size else i: i for i in wanted}
    height, width = opening.info.height, opening.info.width
    if opening.quarter_turns % 2:
        height, width = width, height
    scaler = VideoReformatter()  # one for all frames: making its tables costs as much as using them
    by_stamp = opening.index.by_decode_stamp
    unwanted = set(times.tolist()).difference(numbers) if times.size and not by_stamp else ()
    needless, last = opening.index.decoding(wanted)
    if plainly:
        unwanted, needless, last = (), (), None
    found: set[int] = set()
    with closing(decode_frames(path, seek, unwanted=unwanted, needless=needless, last=last)) as frames:
        for count, frame in enumerate(frames):
            stamp = decode_stamp(frame) if by_stamp else frame.pts
            number = numbers.get(stamp if times.size else count)
            if number is not None:
                # Width and height: a stream may change its size on the way, a clip cannot.
                rgb = scaler.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
                yield number, np.rot90(rgb, opening.quarter_turns)
                found.add(number)
            if len(found) == len(wanted):
                break


def read_decord(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """As `read_pyav`, by decord; its RGB may differ by a rounding."""
    try:
        import decord
    except ImportError as error:
        raise EnvironmentProblem("data.decoder: decord is not installed; use 'auto'") from error
    opening = inspect_video(path)
    if "decord" not in opening.exact or opening.quarter_turns:
        raise _wrong(path, "decord")
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(decoder_input(path), num_threads=1)
        return dict(zip(wanted, reader.get_batch(wanted).asnumpy(), strict=True))
    except decord.DECORDError as error:
        raise VideoError(path, "cannot be read by decord; use data.decoder 'auto'") from error


def read_torchcodec(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """As `read_pyav`, by torchcodec in its exact mode; the same bits."""
    decoders = _torchcodec()
    opening = inspect_video(path)
    if "torchcodec" not in opening.exact:
        raise _wrong(path, "torchcodec")
    try:
        decoder = decoders.VideoDecoder(
            decoder_input(path), stream_index=opening.stream, dimension_order="NHWC", num_ffmpeg_threads=1
        )
        frames = decoder.get_frames_at(wanted).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, "cannot be read by torchcodec; use data.decoder 'auto'") from error
    if frames.shape[1:3] != (opening.info.height, opening.info.width):
        raise _wrong(path, "torchcodec")
    return dict(zip(wanted, frames, strict=True))


def _wrong(path: Video, backend: str) -> VideoError:
    return VideoError(path, f"{backend} may return wrong frames of this file; use data.decoder 'auto'")


def _torchcodec() -> ModuleType:
    """torchcodec.decoders, or an error that says what is missing: the package, or FFmpeg."""
    if torchcodec_works():
        return import_module("torchcodec.decoders")
    if find_spec("torchcodec") is None:
        raise EnvironmentProblem("data.decoder: torchcodec is not installed; use 'auto'")
    raise EnvironmentProblem(
        "data.decoder: torchcodec finds no FFmpeg libraries that it knows; install FFmpeg, or use 'auto'"
    )


@cache
def torchcodec_works() -> bool:
    """Whether torchcodec is installed and works: it brings no FFmpeg of its own."""
    try:
        return import_module("torchcodec").ffmpeg_major_version is not None
    except (ImportError, RuntimeError, OSError):  # older ones do not even load
        return False


DECODERS: Final[dict[str, Read]] = {
    "auto": read_auto,
    "pyav": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}
