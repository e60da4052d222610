"""Which back-ends beside PyAV return the right frames of a file.

What they get wrong is tabled in docs/data.md. Each rule was found by reading back numbers burnt into the
frames of rendered files, and by comparing with all frames decoded in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from everest.data.packet_index import Packet, has_closed_gops

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

EIGHT_BITS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})


def exact_backends(
    container: InputContainer, stream: VideoStream, packets: Sequence[Packet]
) -> frozenset[str]:
    """Names of the back-ends that give the same frames as PyAV, to the bit but for decord's rounding.

    Args:
        packets: those that show a frame, in decode order; empty where only counting is exact.
    """
    if not packets or stream.frames not in (0, len(packets)):  # counted, or damaged: frames are missing
        return frozenset()
    rules = {"decord": _decord, "torchcodec": _torchcodec}
    return frozenset(name for name, is_exact in rules.items() if is_exact(container, stream, packets))


def _decord(container: InputContainer, stream: VideoStream, packets: Sequence[Packet]) -> bool:
    """decord 0.6: wrong frames of open GOPs, broken pictures of 4:4:4, another of several streams; no AV1."""
    codec = stream.codec_context
    if len(container.streams.video) > 1:
        return False
    if codec.pix_fmt not in ("yuv420p", "yuvj420p") or codec.codec.name in ("av1", "libdav1d"):
        return False
    if not has_closed_gops(packets):
        return False
    steps = np.diff(np.sort([packet.time for packet in packets]))
    return np.unique(steps).size <= 1


def _torchcodec(container: InputContainer, stream: VideoStream, packets: Sequence[Packet]) -> bool:
    """torchcodec 0.17 in exact mode: other colours where a sample has more than 8 bits."""
    return stream.codec_context.pix_fmt in EIGHT_BITS
