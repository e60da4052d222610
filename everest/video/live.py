"""The frames of a live source as they arrive: a camera, a network stream or a pipe, decoded by PyAV.

Unlike a file, a source has no index and may be damaged anywhere: damaged frames are left out.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.error import ExitError, InvalidDataError
from av.video.reformatter import VideoReformatter

from everest.video.stream import LARGEST_FRAME, VideoError, check_frame_size, decoder_errors

TIMEOUT: Final = 5.0  # seconds without a packet of a network stream or camera; our choice


@dataclass(frozen=True, slots=True, eq=False)
class LiveFrame:
    """A frame of a source."""

    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    seconds: float  # from the first frame of the connection, by the time stamps of the source
    arrived: float  # time.monotonic()


def can_reconnect(source: str) -> bool:
    """Whether a source may come back after its end: a network stream or a camera; not a pipe or a file."""
    if "://" in source:
        return True
    path = Path(source)
    return source != "-" and path.exists() and stat.S_ISCHR(path.stat().st_mode)


def live_frames(source: str, *, connected: Callable[[float], None]) -> Iterator[LiveFrame]:
    """Connect to a source, and yield its frames until it ends.

    Args:
        source: an address such as rtsp://…, the device of a camera, a pipe or file, or - for standard input.
        connected: receives the frame rate that the source states, 0 if none, before the first frame.
    Raises:
        VideoError: the source cannot be opened, has no video, or fails.
    """
    options = {"max_pixels": str(LARGEST_FRAME)}
    if source.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    is_camera = "://" not in source and can_reconnect(source)
    name = "pipe:0" if source == "-" else source
    timeout = TIMEOUT if can_reconnect(source) else None
    with decoder_errors(source, "cannot be opened"):
        container = av.open(name, format="v4l2" if is_camera else None, options=options, timeout=timeout)
    with container:
        if not container.streams.video:
            raise VideoError(source, "no video stream")
        stream = container.streams.video[0]
        check_frame_size(source, (stream.codec_context.height, stream.codec_context.width))
        connected(float(stream.average_rate or stream.guessed_rate or 0))
        scaler, first, packets = VideoReformatter(), None, container.demux(stream)
        while True:
            with decoder_errors(source, "the stream failed"):
                try:
                    packet = next(packets, None)
                except ExitError:  # of the timeout
                    raise VideoError(source, f"nothing was received for {TIMEOUT:g} s") from None
            if packet is None:
                return
            try:
                frames = packet.decode()
            except InvalidDataError:
                continue
            for frame in frames:
                arrived = time.monotonic()
                seconds = arrived if frame.time is None else frame.time
                first = seconds if first is None else first
                if not frame.is_corrupt:
                    with decoder_errors(source, "a frame cannot be converted"):
                        pixels = scaler.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    yield LiveFrame(pixels, seconds - first, arrived)
