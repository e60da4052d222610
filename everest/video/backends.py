"""Decoding back-ends: each returns the frames of a file by their numbers, the same ones or an error.

H height, W width. PyAV reads every file and is always installed. decord refuses the files for which it is
known to return wrong frames (everest.video.facts).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from everest.errors import EnvironmentProblem
from everest.video.decoding import decode_frames, decode_images
from everest.video.facts import VideoFacts, inspect_video
from everest.video.index import FrameIndex, StampedIndex, numbered
from everest.video.source import Video, decoder_input
from everest.video.stream import VideoError, decoder_errors

ToPixels = Callable[[VideoFrame], np.ndarray]  # of a frame (H, W, 3) uint8, RGB


def pixel_converter(
    path: Video,
    facts: VideoFacts,
    size: tuple[int, int] | None = None,
    interpolation: Interpolation | None = None,
) -> ToPixels:
    """Return a function that turns decoded frames into upright pixels of a size (None: that of the video)."""
    scaler = VideoReformatter()  # one for many frames: making its tables costs as much as using them
    # Always a size: a stream may change its frame size, a clip must not.
    height, width = facts.orientation.exchanged(size or (facts.info.height, facts.info.width))

    def to_pixels(frame: VideoFrame) -> np.ndarray:
        with decoder_errors(path):
            rgb = scaler.reformat(frame, width, height, "rgb24", interpolation=interpolation, threads=1)
            return facts.orientation.upright(rgb.to_ndarray())

    return to_pixels


def pyav_in_order(path: Video, wanted: list[int]) -> Iterator[tuple[int, np.ndarray | None]]:
    """The numbers of the `wanted` frames (rising) and their pixels (H, W, 3) uint8; None for a damaged one.

    The packets of Motion JPEG are read where they are in the file, if that is known.
    """
    facts = inspect_video(path)
    index = facts.index
    to_pixels = pixel_converter(path, facts)
    if not isinstance(index, StampedIndex) or not index.offsets.size:
        yield from _demuxed_in_order(path, index, to_pixels, wanted)
        return
    byte_ranges = zip(index.offsets[wanted].tolist(), index.sizes[wanted].tolist(), strict=True)
    for number, frame in zip(wanted, decode_images(path, byte_ranges), strict=True):
        if frame is None:
            yield from _demuxed_in_order(path, index, to_pixels, [number])
        else:
            yield number, to_pixels(frame)


def _demuxed_in_order(
    path: Video, index: FrameIndex, to_pixels: ToPixels, wanted: list[int]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """As `pyav_in_order`, with all packets that the wanted frames need."""
    for entry, run in index.runs(wanted):
        done = 0
        # Again from the start: a seek may end after its target, or after a frame to which the target refers.
        # After some keyframes, frames refer to earlier ones; there no frame may be skipped.
        for start, skipping in ((entry, True), (None, False)):
            rest = run[done:]
            # An output that is counted depends on all packets before it.
            skips = index.skips(rest) if skipping and isinstance(index, StampedIndex) else None
            with closing(decode_frames(path, start, skips=skips)) as decoded:
                for number, frame in islice(numbered(index, decoded, rest), len(rest)):
                    position = bisect_left(run, number)
                    if position < done:  # a damaged file's late frame: already given as missing
                        continue
                    if position > done and skipping:  # perhaps not missing
                        break
                    yield from ((missing, None) for missing in run[done:position])
                    yield number, to_pixels(frame)
                    done = position + 1
            if done == len(run):
                break
        yield from ((missing, None) for missing in run[done:])


def read_decord(path: Video, wanted: list[int]) -> Iterable[tuple[int, np.ndarray]]:
    """As `pyav_in_order`, with decord: all frames or an error; values may differ by a rounding."""
    try:
        import decord
    except ImportError as error:
        raise EnvironmentProblem("data.decoder: decord is not installed; use 'auto'") from error
    if not inspect_video(path).decord_is_exact:
        raise VideoError(path, "decord may return wrong frames of this file; use data.decoder 'auto'")
    decord.logging.set_level(decord.logging.QUIET)
    source = decoder_input(path)
    with decoder_errors(path, "cannot be read by decord; use data.decoder 'auto'", details=False):
        frames = decord.VideoReader(source, num_threads=1).get_batch(wanted).asnumpy()
    return zip(wanted, frames, strict=True)
