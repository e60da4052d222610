"""The windows that a trained tokenizer codes together.

Windows are independent, so clips are coded in chunks of a bounded size: a part of one clip, or several clips.
"""

from __future__ import annotations

from math import prod
from typing import Final

from everest.config.sizes import TokenizerConfig

# Our choice: the most values of a chunk in the encoder's first layer, unless a single window has more.
CHUNK_VALUES: Final = 2**23


def windows_at_once(config: TokenizerConfig, *, window: int, frames: int, size: tuple[int, int]) -> int:
    """The windows in each chunk of clips of `frames` frames of `size` (height, width) pixels.

    The number is a divisor of the windows of a clip, or a multiple: then a chunk is several clips.

    Args:
        window: frames of a window.
    """
    windows = frames // window
    values = config.channels * config.multipliers[0] * prod(config.stem_grid(window, size))
    most = max(1, CHUNK_VALUES // values)
    if most >= windows:
        return most // windows * windows
    return max(number for number in range(1, windows + 1) if windows % number == 0 and number <= most)
