"""A linear classifier of small images: the mean of a clip and its change, without any token.

B batch, C channels, T frames, H W pixels, S the side of an image, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.heads import Heads
from everest.config.values import Count, Length, settings
from everest.models.classifier import Classifier, ExactLinear
from everest.models.clip_spec import ClipSpec
from everest.models.vit import require_clips
from everest.video.pixels import IMAGENET, PixelStatistics

SIDE: Final = 16  # heuristic: rows and columns of an image
NO_TOKENS: Final = "a linear model on images has no tokens"


def mean_image(clips: Tensor, side: int) -> Tensor:
    """The mean over channels and time of clips (B, C, T, H, W) of bytes, as small images (B, S * S)."""
    return F.adaptive_avg_pool2d(clips.float().mean(dim=(1, 2)), side).flatten(1)


def difference_image(clips: Tensor, side: int) -> Tensor:
    """The mean absolute change from frame to frame of clips (B, C, T, H, W) of bytes, as images (B, S * S).

    It is zero for clips of one frame.
    """
    luma = clips.float().mean(dim=1)  # (B, T, H, W)
    change = luma.diff(dim=1).abs().sum(dim=1) / max(luma.size(1) - 1, 1)  # (B, H, W)
    return F.adaptive_avg_pool2d(change, side).flatten(1)


def image_features(clips: Tensor) -> Tensor:
    """The mean image, then the difference image, of clips (B, C, T, H, W) of bytes: (B, 2 * S * S)."""
    return torch.cat([mean_image(clips, SIDE), difference_image(clips, SIDE)], dim=1)


@settings
class ImageSpec(ClipSpec):
    """All that is needed to rebuild an `ImageClassifier`."""

    kind: Literal["images"] = "images"
    frames: Count
    size: tuple[Length, Length]
    pixels: PixelStatistics = IMAGENET
    heads: Heads

    @property
    def title(self) -> str:
        return f"linear model on the mean image and the change over time, {SIDE} x {SIDE} pixels each"

    @property
    def num_features(self) -> int:
        """F."""
        return 2 * SIDE * SIDE

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.heads:
            yield "heads: missing"

    def build(self) -> ImageClassifier:
        return ImageClassifier(self)


class ImageClassifier(Classifier):
    """Classifies clips by a linear function of `image_features`. New weights are zero."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec, self.heads, self.pixels = spec, spec.heads, spec.pixels
        self.head = ExactLinear(spec.num_features, self.num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, frames: Tensor, keep: float | None = None) -> Tensor:
        """The input (B, F) of the head for clips (B, C, T, H, W), bytes or normalized.

        Normalized clips are converted back to bytes, so the features of both are equal.

        Raises:
            ValueError: other clips than those of the spec; or `keep` is given, which has no meaning here.
        """
        require_clips(frames, (self.spec.channels, self.spec.frames, *self.spec.size))
        if keep is not None:
            raise ValueError(f"keep={keep}: {NO_TOKENS}")
        if frames.dtype != torch.uint8:
            frames = self.pixels.to_unit_range(frames).mul(255).round()
        return image_features(frames)

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the logits (B, outputs) of clips (B, C, T, H, W), bytes or normalized; see `features`."""
        return self.head(self.features(frames, keep))
