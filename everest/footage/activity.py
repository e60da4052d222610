"""How much happens in a video over time, from the sizes of its packets; nothing is decoded.

P packets, N windows. The activity of a packet is its size relative to the running median of its kind, so that
slow changes, such as light or another scene, do not count. Keyframes are left out: their sizes show the
image, not the motion. The definition is our choice.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from everest.video.packet_sizes import PacketSizes

# All our choice.
RUNNING_SECONDS: Final = 600.0  # that a running median covers
OVERHEAD: Final = 64  # bytes added to a packet's size, so that ratios of nearly empty packets stay small
BLOCK_SECONDS: Final = 10.0  # whose bytes are compared to find a constant bitrate
CONSTANT: Final = 0.05  # std / mean of the bytes of these blocks, below which the bitrate is constant


def why_none(packets: PacketSizes) -> str | None:
    """Returns why packet sizes do not show activity; None if they do."""
    if not (packets.kinds > 0).any():
        return "every frame is a keyframe"
    blocks = int(packets.end / BLOCK_SECONDS)  # the incomplete last one is left out
    if blocks < 3:
        return None
    numbers = (packets.seconds / BLOCK_SECONDS).astype(np.int64)
    sums = np.bincount(numbers, weights=packets.sizes)[:blocks]
    variation = float(sums.std() / sums.mean())
    if variation < CONSTANT:
        return f"its bitrate is constant (it varies by {variation:.1%} between {BLOCK_SECONDS:.0f}-s blocks)"
    return None


def packet_activity(packets: PacketSizes) -> NDArray[np.float64]:
    """Returns (P,) the activity of each packet, about 1 if it is as usual; NaN for keyframes."""
    activity = np.full(len(packets.sizes), np.nan)
    for kind in (1, 2):
        chosen = np.flatnonzero(packets.kinds == kind)
        if not chosen.size:
            continue
        sizes = packets.sizes[chosen] + OVERHEAD
        width = round(RUNNING_SECONDS * chosen.size / packets.end)
        medians = median_filter(sizes, size=max(min(width, chosen.size), 1), mode="nearest")
        activity[chosen] = sizes / medians
    return activity


def window_activity(packets: PacketSizes, starts: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """Returns the mean activity of the packets in each window.

    Args:
        starts: (N,) seconds.
        seconds: the length of a window.
    Returns:
        (N,); 0 for a window without a packet other than keyframes.
    """
    activity = packet_activity(packets)
    shown = ~np.isnan(activity)
    sums = np.concatenate([[0.0], np.cumsum(np.where(shown, activity, 0))])
    counts = np.concatenate([[0], np.cumsum(shown)])
    first, last = (np.searchsorted(packets.seconds, times) for times in (starts, starts + seconds))
    return (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
