"""A linear classifier of what pixels say without any token: small images, or histograms of motion.

B batch, C channels, T frames, H W pixels, S the side of an image, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.heads import Heads
from everest.config.values import Count, Length, settings
from everest.models.classifier import Classifier, ExactLinear
from everest.models.clip_spec import ClipSpec
from everest.models.histograms import NUM_HISTOGRAM_FEATURES, motion_histograms
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


# Of clips (B, C, T, H, W) of bytes: the function, the number of features, and what they are.
PIXEL_FEATURES: Final[dict[str, tuple[Callable[[Tensor], Tensor], int, str]]] = {
    "images": (
        image_features,
        2 * SIDE * SIDE,
        f"the mean image and the change over time, {SIDE} x {SIDE} pixels each",
    ),
    "motion": (motion_histograms, NUM_HISTOGRAM_FEATURES, "histograms of edges and their motion"),
}


@settings
class ImageSpec(ClipSpec):
    """All that is needed to rebuild an `ImageClassifier`."""

    kind: Literal["images"] = "images"
    frames: Count
    size: tuple[Length, Length]
    pixels: PixelStatistics = IMAGENET
    heads: Heads
    features: Literal["images", "motion"] = "images"  # a key of PIXEL_FEATURES

    @property
    def title(self) -> str:
        return f"linear model on {PIXEL_FEATURES[self.features][2]}"

    @property
    def num_features(self) -> int:
        """F."""
        return PIXEL_FEATURES[self.features][1]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.heads:
            yield "heads: missing"

    def build(self) -> ImageClassifier:
        return ImageClassifier(self)


class ImageClassifier(Classifier):
    """Classifies clips by a linear function of PIXEL_FEATURES. New weights are zero."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec, self.heads, self.pixels = spec, spec.heads, spec.pixels
        self.compute, *_ = PIXEL_FEATURES[spec.features]
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
        return self.compute(frames)

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the logits (B, outputs) of clips (B, C, T, H, W), bytes or normalized; see `features`."""
        return self.head(self.features(frames, keep))
