"""Whether weights and a recipe agree in the channels of a clip, and in their mean and std."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from everest.errors import CheckpointError
from everest.models.spec import ModelSpec
from everest.video.pixels import PixelStatistics


def require_same_channels(
    saved: ModelSpec, spec: ModelSpec, *, source: str | Path, notify: Callable[[str], None]
) -> None:
    """Check that a model can start from weights; another mean or std is only reported.

    Args:
        saved: of the weights.
        spec: of the model.
    Raises:
        CheckpointError: other channels.
    """
    if saved.pixels == spec.pixels:
        return
    text = other_pixels(saved.pixels, spec.pixels)
    if saved.channels != spec.channels:
        raise CheckpointError(f"{source}: {text}")
    notify(f"{source}: {text}")


def other_pixels(saved: PixelStatistics, requested: PixelStatistics) -> str:
    """State how the clips of weights and of a recipe differ, and the settings that make them equal."""
    if saved.channels != requested.channels:
        return (
            f"trained on clips of {_channels(saved)}, the recipe has {_channels(requested)}; "
            f"set data.channels={saved.channels}"
        )
    return (
        "trained on clips normalized otherwise than in the recipe; for the same numbers, "
        f"set data.mean={list(saved.mean)} and data.std={list(saved.std)}"
    )


def _channels(pixels: PixelStatistics) -> str:
    return "1 channel" if pixels.channels == 1 else f"{pixels.channels} channels"
