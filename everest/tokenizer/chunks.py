"""The memory that a frozen tokenizer takes next to a model."""

from __future__ import annotations

from math import prod
from typing import Final

from everest.config.sizes import TokenizerConfig
from everest.tokenizer.network import windows_at_once
from everest.tokenizer.scorer import first_stride

FLOAT_BYTES: Final = 4


def coding_bytes(
    config: TokenizerConfig, *, window: int, frames: int, size: tuple[int, int], bytes_per_value: int
) -> int:
    """Estimate the bytes that coding and scoring many clips takes without gradients, whatever their number.

    The pixels of one clip, or of all clips of a chunk, in float32, and the values of one chunk, in the
    encoder or in the scorer.

    Args:
        window, frames, size: as in `windows_at_once`.
    """
    number = windows_at_once(config, window=window, frames=frames, size=size)
    chunk = number * window, size
    # Separating the windows of several clips copies them; if they are made smaller, not for long.
    copied = number * window if window < frames < number * window and config.input_scale == 1.0 else 0
    pixels = FLOAT_BYTES * 3 * (max(frames, number * window) + copied) * size[0] * size[1]
    return pixels + max(_encoder_bytes(config, *chunk, bytes_per_value), _scorer_bytes(config, *chunk))


def _encoder_bytes(config: TokenizerConfig, frames: int, size: tuple[int, int], bytes_per_value: int) -> int:
    """The bytes of the tensors of the encoder's largest layer that are alive together, in a norm.

    They are the inputs of the stage and of the block, and the input and the output of the norm. The last two
    are float32 in any precision (autocast on a GPU), and the input is also alive as it was before.
    """
    positions, values = prod(config.stem_grid(frames, size)), 0
    for multiplier, halves_time in zip(config.multipliers, (*config.time_down, False), strict=True):
        values = max(values, positions * config.channels * multiplier)
        positions //= 8 if halves_time else 4
    copied = bytes_per_value if bytes_per_value < FLOAT_BYTES else 0
    return (2 * bytes_per_value + 2 * FLOAT_BYTES + copied) * values


def _scorer_bytes(config: TokenizerConfig, frames: int, size: tuple[int, int]) -> int:
    """The bytes of the scorer, always in float32.

    First the padded pixels and the output of the first convolution, then this output and its GELU.
    """
    height, width = config.scaled(size)
    pixels = frames * height * width
    time, space = config.stride
    output = config.scorer_channels[0] * pixels // (time * first_stride(space) ** 2)
    return FLOAT_BYTES * max(3 * pixels + output, 2 * output)
