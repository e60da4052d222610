"""Reads exactly the requested frames of a video.

F frames, H height, W width, C channels. A video is a file, or a folder of images in the order of their names.
It is given as a path, a URL that fsspec reads, or a member of a shard. Frames are chosen by number, also if
the frame rate varies; `frames_between` converts seconds to numbers.

everest.video.index explains how a frame is found. PyAV reads every file and is always installed; decord
refuses files of which it may return wrong frames.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import islice, pairwise
from math import inf
from typing import Final, NamedTuple

import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from everest.errors import EnvironmentProblem, RecipeError, unknown_name
from everest.system.types import Floats, Span
from everest.video.decoding import LostPackets, Survey, decode_frames, decode_images
from everest.video.images import NO_SECONDS, image_folder, image_frames, read_image
from everest.video.index import FrameIndex, StampedIndex, pick_frames
from everest.video.metadata import VideoInfo, VideoMetadata, inspect_video
from everest.video.missing import damage_text
from everest.video.source import Video, as_video, decoder_input
from everest.video.stream import VideoError, as_video_error, decoder_errors
from everest.video.times import TIME_TOLERANCE

DECODERS: Final = ("auto", "decord")  # auto is PyAV

ToPixels = Callable[[VideoFrame], np.ndarray]  # returns a frame as (H, W, 3) uint8 RGB


class TimedFrame(NamedTuple):
    """A frame and the time at which it is shown."""

    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    time: int  # time in units of `time_base`
    time_base: Fraction  # seconds per unit


def video_info(path: str | Video) -> VideoInfo:
    """The number, size and rate of a video's frames.

    Raises:
        VideoError: nothing can be decoded.
    """
    path = as_video(path)
    folder = image_folder(path)
    if folder is None:
        return inspect_video(path).info
    with as_video_error(path):
        images = image_frames(folder)
        height, width, _ = read_image(images[0]).shape
    return VideoInfo(num_frames=len(images), height=height, width=width, fps=None)


def read_frames(path: str | Video, ids: Sequence[int], *, decoder: str = "auto", channels: int = 3) -> Tensor:
    """Read the frames numbered `ids`, in this order and with repetitions, rotated and mirrored as tagged.

    Args:
        decoder: `auto` is PyAV; `decord` refuses files of which it may return wrong frames.
        channels: 1 returns the luma of the colors, see `luma`.
    Returns:
        (F, H, W, C) uint8: RGB, or luma.
    Raises:
        VideoError: one of the frames does not exist or is damaged.
    """
    if decoder not in DECODERS:
        raise unknown_name("data.decoder", decoder, DECODERS)
    path = as_video(path)
    wanted = sorted({int(i) for i in ids})
    _check_request(path, wanted, channels)
    with as_video_error(path):
        decoded = _read_in_order(path, wanted, channels, decoder)
        frames = {frame_number: pixels for frame_number, pixels in decoded if pixels is not None}
    missing = [frame_number for frame_number in wanted if frame_number not in frames]
    if missing:
        raise _damaged_frame(path, missing[0])
    return torch.from_numpy(np.stack([frames[int(i)] for i in ids]))


def luma(frame: np.ndarray) -> np.ndarray:
    """The luma (H, W, 1) uint8 of colors (H, W, 3): 0.299 R + 0.587 G + 0.114 B (ITU-R 601), rounded."""
    return np.array(Image.fromarray(np.ascontiguousarray(frame)).convert("L"))[..., None]


def frames_in_order(path: str | Video, ids: Iterable[int], *, channels: int = 3) -> Iterator[Tensor]:
    """Yield the frames numbered `ids` (rising) one by one, each decoded once: for long videos.

    Returns:
        (H, W, C) uint8 each, equal to the output of `read_frames`.
    Raises:
        VideoError: a frame does not exist, or (on reaching it) is damaged or an image of another size.
    """
    path = as_video(path)
    wanted = [int(i) for i in ids]
    for frame_number, frame in zip(wanted, intact_frames(path, wanted, channels=channels), strict=True):
        if frame is None:
            raise _damaged_frame(path, frame_number)
        yield frame


def intact_frames(path: Video, wanted: list[int], *, channels: int = 3) -> Iterator[Tensor | None]:
    """Yield frames as `frames_in_order` does, with None for a damaged frame."""
    _check_request(path, wanted, channels)
    with as_video_error(path):
        for _, pixels in _read_in_order(path, wanted, channels):
            # torch needs a writable array.
            yield None if pixels is None else torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _read_in_order(
    path: Video, wanted: list[int], channels: int, decoder: str = "auto"
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield the `wanted` frames (rising): number and pixels (H, W, C), None for a damaged one."""
    folder = image_folder(path)
    if folder is not None:
        files = image_frames(folder)
        frames = ((frame_number, read_image(files[frame_number])) for frame_number in wanted)
    elif decoder == "decord":
        frames = _read_decord(path, wanted)
    else:
        frames = _read_pyav(path, wanted)
    shape = None
    for frame_number, pixels in frames:
        if pixels is not None:
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise VideoError(path, "images of different sizes")
            pixels = luma(pixels) if channels == 1 else pixels
        yield frame_number, pixels


def _read_pyav(path: Video, wanted: list[int]) -> Iterator[tuple[int, np.ndarray | None]]:
    """As `_read_in_order`, in colors, by PyAV; Motion JPEG is read in place if its positions are known."""
    metadata = inspect_video(path)
    index = metadata.index
    to_pixels = _pixel_converter(path, metadata)
    if not isinstance(index, StampedIndex) or not index.offsets.size:
        yield from _read_demuxed(path, index, to_pixels, wanted)
        return
    byte_ranges = zip(index.offsets[wanted].tolist(), index.sizes[wanted].tolist(), strict=True)
    for frame_number, frame in zip(wanted, decode_images(path, byte_ranges), strict=True):
        if frame is None:
            yield from _read_demuxed(path, index, to_pixels, [frame_number])
        else:
            yield frame_number, to_pixels(frame)


def _read_demuxed(
    path: Video, index: FrameIndex, to_pixels: ToPixels, wanted: list[int]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """As `_read_pyav`, from the packets of all frames to which the wanted frames refer."""
    for entry, part in index.plan_seeks(wanted):
        num_done = 0
        # The second pass starts anew: a seek may end after its target, or after a frame that this needs.
        # After some keyframes, frames refer to earlier ones: then no frame may be skipped.
        for seek_entry, may_skip in ((entry, True), (None, False)):
            remaining = part[num_done:]
            # With a counted index, an output number depends on all packets before it.
            skips = index.skips(remaining) if may_skip and isinstance(index, StampedIndex) else None
            with closing(decode_frames(path, seek_entry, skips=skips)) as decoded:
                for frame_number, frame in islice(pick_frames(index, decoded, remaining), len(remaining)):
                    position = bisect_left(part, frame_number)
                    if position < num_done:  # a late frame of a damaged file, already yielded as None
                        continue
                    if position > num_done and may_skip:  # the second pass may find them
                        break
                    yield from ((missing, None) for missing in part[num_done:position])
                    yield frame_number, to_pixels(frame)
                    num_done = position + 1
            if num_done == len(part):
                break
        yield from ((missing, None) for missing in part[num_done:])


def _read_decord(path: Video, wanted: list[int]) -> Iterable[tuple[int, np.ndarray]]:
    """As `_read_pyav`, by decord: all frames or an error; values may differ by a rounding."""
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


def _pixel_converter(
    path: Video,
    metadata: VideoMetadata,
    size: tuple[int, int] | None = None,
    interpolation: Interpolation | None = None,
) -> ToPixels:
    """Return a function that turns decoded frames into upright pixels of a size (None: the video's)."""
    scaler = VideoReformatter()  # one for all frames: making its tables costs as much as using them
    # The size is always set: a stream may change its frame size, a clip must not.
    height, width = metadata.orientation.apply_to_size(size or (metadata.info.height, metadata.info.width))

    def to_pixels(frame: VideoFrame) -> np.ndarray:
        with decoder_errors(path):
            rgb = scaler.reformat(frame, width, height, "rgb24", interpolation=interpolation, threads=1)
            return metadata.orientation.apply(rgb.to_ndarray())

    return to_pixels


def _check_request(path: Video, wanted: list[int], channels: int) -> None:
    """Raise an error if no frame is wanted, a frame does not exist, or the number of channels is wrong."""
    assert all(frame_number < next_number for frame_number, next_number in pairwise(wanted))
    if channels not in (1, 3):
        raise RecipeError(f"channels: {channels}; frames have 3 (colors) or 1 (luma)")
    count = video_info(path).num_frames
    if not wanted or wanted[0] < 0 or wanted[-1] >= count:
        requested = f"frames {wanted[0]} to {wanted[-1]}" if wanted else "no frame"
        raise VideoError(path, f"{requested} requested, there are {count}")


def _damaged_frame(path: Video, number: int) -> VideoError:
    return VideoError(
        path, f"frame {number} of {video_info(path).num_frames} cannot be decoded (damaged file)"
    )


def resized_frames(
    path: Video, size: tuple[int, int], rate: Fraction, *, lost: list[LostPackets]
) -> Generator[TimedFrame]:
    """Yield all intact frames of a video, upright and scaled to `size` (H, W), from time 0.

    Args:
        rate: frames per second if the video has no display times.
        lost: receives the packets that cannot be decoded.
    """
    folder = image_folder(path)
    if folder is not None:
        for frame_number, pixels in enumerate(frames_in_order(folder, range(video_info(folder).num_frames))):
            image = Image.fromarray(pixels.numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            yield TimedFrame(np.asarray(image), frame_number, 1 / rate)
        return
    metadata = inspect_video(path)
    times = metadata.index.times
    time_base = Fraction(1) / Fraction(metadata.second).limit_denominator(10**9)
    to_pixels = _pixel_converter(path, metadata, size, Interpolation.BICUBIC)
    with closing(decode_frames(path, survey=Survey(lost=lost))) as decoded:
        for frame_number, frame in pick_frames(metadata.index, decoded, range(metadata.info.num_frames)):
            pixels = np.ascontiguousarray(to_pixels(frame))
            if times.size:
                yield TimedFrame(pixels, int(times[frame_number] - times[0]), time_base)
            else:
                yield TimedFrame(pixels, frame_number, 1 / rate)


def frame_times(path: str | Video) -> NDArray[np.float64]:
    """The time at which each frame is shown: (F,) seconds from the first frame.

    Raises:
        VideoError: the video is a folder of images, which has no times.
    """
    path = as_video(path)
    if image_folder(path):
        raise VideoError(path, f"{NO_SECONDS}, or use start_frame and end_frame, and data.fps: null")
    metadata = inspect_video(path)
    stamps = metadata.index.times
    if not stamps.size:
        stamps = np.arange(metadata.info.num_frames) * metadata.second / (metadata.info.fps or 1)
    return (stamps - stamps[0]) / metadata.second


def video_damage_text(
    path: str | Video, skipped: Iterable[Span] = (), *, within: Span = (-inf, inf)
) -> str | None:
    """A sentence about the known damage of a video, in seconds from its first frame; None without damage.

    Args:
        skipped: further parts that turned out to be damaged.
        within: the part of the video to describe.
    """
    path = as_video(path)
    missing = () if image_folder(path) else inspect_video(path).missing
    return damage_text([*missing, *skipped], within=within)


def repair_notices(path: str | Video) -> list[str]:
    """Sentences about the repairs that were needed to read a video."""
    path = as_video(path)
    return [] if image_folder(path) else [f"{path}: {text}" for text in inspect_video(path).notices]


def frames_between(path: str | Video, start: float | None, end: float | None) -> tuple[int, int]:
    """The number of the first frame shown at or after `start` seconds, and of the first at or after `end`.

    A `start` of None is the start of the video, an `end` of None its end.

    Raises:
        VideoError: no frame is shown in between, or the video has no times.
    """
    seconds = frame_times(path)
    first, last = frame_range(seconds, start, end)
    if first >= last:
        span = f"after {start} s" if end is None else f"between {start or 0.0} s and {end} s"
        raise VideoError(path, f"no frame {span}; the last is at {seconds[-1]:.2f} s")
    return first, last


def frame_range(seconds: Floats, start: float | None, end: float | None) -> tuple[int, int]:
    """`frames_between` for known `frame_times`; two equal numbers if no frame is shown in between."""
    first = 0 if start is None else int(np.searchsorted(seconds, start - TIME_TOLERANCE))
    last = seconds.size if end is None else int(np.searchsorted(seconds, end - TIME_TOLERANCE))
    return first, last
