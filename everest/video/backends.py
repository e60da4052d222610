"""Decoding back-ends: each returns the frames of a file by their numbers, the same ones or an error.

H height, W width. PyAV reads every file and is always installed. decord and torchcodec refuse the files for
which they are known to return wrong frames (everest.video.index); `auto` does not use them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import numpy as np
from av.video.reformatter import VideoReformatter

from everest.errors import EnvironmentProblem
from everest.video.file import VideoFile, inspect_video
from everest.video.index import decode_stamp
from everest.video.source import Video, decoder_input
from everest.video.stream import SKIPPING_CODECS, VideoError, decode_frames, decoder_errors

Read = Callable[[Video, list[int]], dict[int, np.ndarray]]

SMALL: Final = 400 * 300  # pixels of a frame; above this nothing was faster than PyAV (docs/performance.md)


def read_auto(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """Read with the back-end that was measured to be the fastest of those that are exact for this file.

    That is PyAV if it can skip frames; if every frame must be decoded and frames are small, torchcodec.
    """
    video = inspect_video(path)
    small = video.info.height * video.info.width <= SMALL
    is_exact = "torchcodec" in video.exact
    if small and is_exact and video.codec not in SKIPPING_CODECS and torchcodec_works():
        with suppress(VideoError):  # damaged: PyAV reads up to the damage
            return read_torchcodec(path, wanted)
    return read_pyav(path, wanted)


def read_pyav(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """Read the `wanted` frames (ascending): number to (H, W, 3) uint8, for those that can be decoded."""
    video = inspect_video(path)
    frames: dict[int, np.ndarray] = {}
    for seek, run in video.index.runs(wanted):
        frames |= dict(_decode(path, video, seek, run))
    missing = [i for i in wanted if i not in frames]
    if missing:  # a seek may end after its target, or after a frame to which the target refers
        frames |= dict(_decode(path, video, None, missing, skipping=False))
    return frames


def pyav_in_order(path: Video, wanted: list[int]) -> Iterator[np.ndarray]:
    """The pixels of the `wanted` frames (ascending), up to the first that cannot be decoded."""
    video = inspect_video(path)
    for seek, run in video.index.runs(wanted):
        done = 0
        for start, skipping in ((seek, True), (None, False)):  # as in read_pyav
            for number, pixels in _decode(path, video, start, run[done:], skipping=skipping):
                if number != run[done]:
                    break
                yield pixels
                done += 1
            if done == len(run):
                break
        else:
            return


def _decode(
    path: Video, video: VideoFile, seek: int | None, wanted: list[int], *, skipping: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode from `seek` on; number and pixels of the `wanted` frames in display order, up to the last one.

    Args:
        skipping: skip frames that no wanted one needs. After some keyframes, frames refer to earlier ones;
            there every frame must be decoded.
    """
    times = video.index.times
    numbers: dict[int | None, int] = {int(times[i]) if times.size else i: i for i in wanted}
    height, width = video.info.height, video.info.width
    if video.quarter_turns % 2:
        height, width = width, height
    scaler = VideoReformatter()  # one for all frames: making its tables costs as much as using them
    unwanted, needless, last = (), (), None
    if skipping:
        needless, last = video.index.needless_and_last(wanted)
        near = times[video.index.around(wanted)] if times.size else times
        unwanted = () if video.index.by_decode_stamp else set(near.tolist()).difference(numbers)
    done: set[int] = set()  # a damaged file may repeat a time stamp
    with closing(decode_frames(path, seek, unwanted=unwanted, needless=needless, last=last)) as frames:
        for count, frame in enumerate(frames):
            stamp = decode_stamp(frame) if video.index.by_decode_stamp else frame.pts
            number = numbers.get(stamp if times.size else count)
            if number is not None:
                # With width and height: a stream may change its frame size, a clip must not.
                with decoder_errors(path):
                    rgb = scaler.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
                yield number, np.rot90(rgb, video.quarter_turns)
                done.add(number)
            if len(done) == len(wanted):
                break


def read_decord(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """As `read_pyav`, with decord; RGB values may differ by a rounding."""
    try:
        import decord
    except ImportError as error:
        raise EnvironmentProblem("data.decoder: decord is not installed; use 'auto'") from error
    video = inspect_video(path)
    if "decord" not in video.exact or video.quarter_turns:
        raise _wrong(path, "decord")
    decord.logging.set_level(decord.logging.QUIET)
    source = decoder_input(path)
    with decoder_errors(path, "cannot be read by decord; use data.decoder 'auto'", details=False):
        frames = decord.VideoReader(source, num_threads=1).get_batch(wanted).asnumpy()
    return dict(zip(wanted, frames, strict=True))


def read_torchcodec(path: Video, wanted: list[int]) -> dict[int, np.ndarray]:
    """As `read_pyav`, with torchcodec in its exact mode; to the bit."""
    if not torchcodec_works():
        if find_spec("torchcodec") is None:
            raise EnvironmentProblem("data.decoder: torchcodec is not installed; use 'auto'")
        raise EnvironmentProblem(
            "data.decoder: torchcodec finds no FFmpeg that it supports; install FFmpeg, or use 'auto'"
        )
    video = inspect_video(path)
    if "torchcodec" not in video.exact:
        raise _wrong(path, "torchcodec")
    source = decoder_input(path)
    with decoder_errors(path, "cannot be read by torchcodec; use data.decoder 'auto'", details=False):
        decoder = import_module("torchcodec.decoders").VideoDecoder(
            source, stream_index=video.stream, dimension_order="NHWC", num_ffmpeg_threads=1
        )
        frames = decoder.get_frames_at(wanted).data.numpy()
    if frames.shape[1:3] != (video.info.height, video.info.width):
        raise _wrong(path, "torchcodec")
    return dict(zip(wanted, frames, strict=True))


def _wrong(path: Video, backend: str) -> VideoError:
    return VideoError(path, f"{backend} may return wrong frames of this file; use data.decoder 'auto'")


@cache
def torchcodec_works() -> bool:
    """Whether torchcodec is installed and finds FFmpeg, which its package does not contain."""
    try:
        return import_module("torchcodec").ffmpeg_major_version is not None
    except (ImportError, RuntimeError, OSError):  # older ones cannot be imported
        return False


DECODERS: Final[dict[str, Read]] = {
    "auto": read_auto,
    "pyav": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}
