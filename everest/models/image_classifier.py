"""Linear classifiers without tokens: of small images, or of histograms of motion.

The histograms are of orientations: of edges, of their motion, and of the edges of change. They show where in
the picture something moves and in which direction, whatever its color. From Dalal and Triggs 2005 (gradients
of images) and Dalal, Triggs and Schmid 2006 (motion), with the component of the motion along the gradient of
each pixel in place of optical flow.

B batch, C channels, T frames, H W pixels, S the side of an image, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.heads import Heads
from everest.config.values import Count, SmallCount, settings
from everest.models.classifier import Classifier, ExactLinear
from everest.models.clip_spec import ClipSpec
from everest.models.vit import require_clips
from everest.video.pixels import IMAGENET, PixelStatistics

IMAGE_SIDE: Final = 16  # heuristic: rows and columns of an image
NO_TOKENS: Final = "a linear model on images has no tokens"
BINS: Final = 8  # directions of a histogram; of edges, whose sign does not count, in half a turn
SHARPNESS: Final = 4  # heuristic, a power of 2: halfway to the next bin, each has 73 % of the weight
CELLS: Final = (4, 2, 1)  # along a side of the picture, of the three grids of a histogram
NUM_HISTOGRAM_FEATURES: Final = 3 * BINS * sum(side**2 for side in CELLS)


def difference_image(clips: Tensor, side: int) -> Tensor:
    """The mean absolute change from frame to frame of clips (B, C, T, H, W) of bytes, as images (B, S * S).

    It is zero for clips of one frame.
    """
    luma = clips.float().mean(dim=1)  # (B, T, H, W)
    change = luma.diff(dim=1).abs().sum(dim=1) / max(luma.size(1) - 1, 1)  # (B, H, W)
    return F.adaptive_avg_pool2d(change, side).flatten(1)


def image_pairs(clips: Tensor) -> Tensor:
    """The small images of each pair of successive frames of clips (B, C, T, H, W) of bytes.

    Returns:
        (B, T - 1, 3, S * S) float32: the earlier frame, the later one, and the absolute change between them.
    """
    luma = clips.float().mean(dim=1)  # (B, T, H, W)
    images = F.adaptive_avg_pool2d(luma, IMAGE_SIDE).flatten(2)
    change = F.adaptive_avg_pool2d(luma.diff(dim=1).abs(), IMAGE_SIDE).flatten(2)
    return torch.stack([images[:, :-1], images[:, 1:], change], dim=2)


def pool_images(pairs: Tensor) -> Tensor:
    """The mean image, then the mean change, of clips whose `image_pairs` (B, T - 1, 3, S * S) are given.

    Returns:
        (B, 2 * S * S).
    """
    earlier, later, change = pairs.unbind(dim=2)  # (B, T - 1, S * S) each
    images = torch.cat([earlier, later[:, -1:]], dim=1)
    return torch.cat([images.mean(dim=1), change.mean(dim=1)], dim=1)


def motion_pairs(clips: Tensor) -> Tensor:
    """The histograms of each pair of successive frames of clips (B, C, T, H, W) of bytes.

    Without motion, its histograms are zero.

    Returns:
        (B, T - 1, 3, BINS, 4, 4) float32: kinds, bins, and the cells of the finest grid.
    """
    luma = clips.float().mean(dim=1) / 255  # (B, T, H, W)
    change = luma.diff(dim=1)  # (B, T - 1, H, W)
    dx, dy = _gradient((luma[:, 1:] + luma[:, :-1]) / 2)
    toward = -change.sign()  # of what brightens, against the gradient
    magnitude = (dx.square() + dy.square()).sqrt()
    moved = change.abs() * (magnitude > 0)
    histograms = [
        _histogram(dx, dy, magnitude, period=math.pi),
        _histogram(toward * dx, toward * dy, moved, period=2 * math.pi),
    ]
    dx, dy = _gradient(change)
    histograms.append(_histogram(dx, dy, (dx.square() + dy.square()).sqrt(), period=math.pi))
    return torch.stack(histograms, dim=2)


def pool_motion(pairs: Tensor) -> Tensor:
    """The square roots of the fractions of each histogram, in each grid, from `motion_pairs` of clips.

    Returns:
        (B, F) float32, F = NUM_HISTOGRAM_FEATURES: kinds, in each the grids, in each the bins and the cells.
    """
    fractions = []
    for histogram in pairs.mean(dim=1).unbind(dim=1):  # (B, BINS, 4, 4)
        for side in CELLS:
            cells = F.adaptive_avg_pool2d(histogram, side).flatten(1)  # (B, BINS * side * side)
            fractions.append((cells / cells.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt())
    return torch.cat(fractions, dim=1)


def _gradient(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Half the differences of the neighbors of each pixel, to the right and down: both (B, T, H, W)."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return dx / 2, dy / 2


def _histogram(dx: Tensor, dy: Tensor, weight: Tensor, *, period: float) -> Tensor:
    """The mean weight of each direction in each cell of the finest grid: (B, T, BINS, 4, 4).

    Args:
        dx, dy, weight: (B, T, H, W); only the direction of the first two counts.
        period: the angle over which the bins are spread; with pi, opposite directions are one.
    """
    magnitude = (dx.square() + dy.square()).clamp(min=1e-12).sqrt()
    squarings = round(math.log2(SHARPNESS * round(2 * math.pi / period) ** 2))
    bins = []
    for number in range(BINS):
        angle = number * period / BINS
        along = (math.cos(angle) * dx + math.sin(angle) * dy) / magnitude  # cosine
        along = along.abs() if period == math.pi else along.clamp(min=0)
        for _ in range(squarings):  # to the power of 4 or 16: ONNX Runtime's Pow takes far longer
            along = along * along
        bins.append(F.adaptive_avg_pool2d(weight * along, CELLS[0]))  # (B, T, 4, 4)
    return torch.stack(bins, dim=2)


class PixelFeatures(NamedTuple):
    """Features of the pixels of clips: what is computed of each pair of successive frames, and its mean."""

    encode: Callable[[Tensor], Tensor]  # of clips (B, C, T, H, W) of bytes, to (B, T - 1, …)
    pool: Callable[[Tensor], Tensor]  # to (B, F)
    width: int  # F
    title: str

    def __call__(self, clips: Tensor) -> Tensor:
        """The features (B, F) of clips (B, C, T, H, W) of bytes; a single frame is a pair with itself."""
        return self.pool(self.encode(clips.expand(-1, -1, 2, -1, -1) if clips.size(2) == 1 else clips))


PIXEL_FEATURES: Final = {
    "images": PixelFeatures(
        image_pairs,
        pool_images,
        2 * IMAGE_SIDE * IMAGE_SIDE,
        f"the mean image and the change over time, {IMAGE_SIDE} x {IMAGE_SIDE} pixels each",
    ),
    "motion": PixelFeatures(
        motion_pairs, pool_motion, NUM_HISTOGRAM_FEATURES, "histograms of edges and their motion"
    ),
}


@settings
class PixelSpec(ClipSpec):
    """All that is needed to rebuild a `PixelClassifier`."""

    kind: Literal["images"] = "images"
    frames: Count
    size: tuple[SmallCount, SmallCount]
    pixels: PixelStatistics = IMAGENET
    heads: Heads
    features: Literal["images", "motion"] = "images"  # a key of PIXEL_FEATURES

    @property
    def title(self) -> str:
        of_one = " (of one frame, so without change or motion)" if self.frames == 1 else ""
        return f"linear model on {PIXEL_FEATURES[self.features].title}{of_one}"

    @property
    def num_features(self) -> int:
        """F."""
        return PIXEL_FEATURES[self.features].width

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.heads:
            yield "heads", "missing"

    def build(self) -> PixelClassifier:
        return PixelClassifier(self)


class PixelClassifier(Classifier):
    """Classifies clips by a linear function of PIXEL_FEATURES. New weights are zero."""

    def __init__(self, spec: PixelSpec) -> None:
        super().__init__()
        self.spec, self.heads, self.pixels = spec, spec.heads, spec.pixels
        self.kind = PIXEL_FEATURES[spec.features]
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
        return self.kind(self._as_bytes(frames))

    def piece_frames(self, keep: float | None) -> int:
        """Two frames, of clips that have them."""
        return min(2, self.spec.frames)

    def encode_pieces(self, pieces: Tensor) -> Tensor:
        return self.kind.encode(self._as_bytes(pieces))[:, 0]

    def pool_pieces(self, encoded: Tensor) -> Tensor:
        return self.kind.pool(encoded)

    def _as_bytes(self, frames: Tensor) -> Tensor:
        if frames.dtype == torch.uint8:
            return frames
        return self.pixels.to_unit_range(frames).mul(255).round()

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the logits (B, outputs) of clips (B, C, T, H, W), bytes or normalized; see `features`."""
        return self.head(self.features(frames, keep))
