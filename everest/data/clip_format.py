"""The format of the clips that a model takes: which frames of a video, their size and normalization.

C channels, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from everest.data.views import EvalViews, ValidationViews
from everest.lists.sample import Sample
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """The clips that a model takes."""

    frames: int
    stride: int  # frames from one sampled frame to the next; without effect unless `sampling` is dense
    size: tuple[int, int]  # height, width
    sampling: str = "dense"  # or segment, spread: as `finetune.sampling` of a recipe
    fps: float | None = None  # frames per second that the stride counts; None: of the file
    mean: tuple[float, ...] = IMAGENET_MEAN  # RGB, of values in [0, 1]; one value: of luma
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("stride", self.stride), ("size", min(self.size))):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.fps is not None and not 0 < self.fps < inf:
            raise ValueError(f"fps must be a number above 0, not {self.fps}")

    @property
    def channels(self) -> int:
        """C: 3 colors, or 1 for luma."""
        return len(self.mean)

    def read(self, video: str | Path | Sample) -> Tensor:
        """Read the middle of a video or sample, center-cropped: (C, T, H, W) uint8."""
        unused_rng = np.random.default_rng(0)  # these views draw nothing
        sample = video if isinstance(video, Sample) else Sample(path=str(video))
        return ValidationViews(**self._shared)(sample, unused_rng, "auto").frames[0]

    def views(self) -> EvalViews:
        """The view of an evaluation with one clip and one crop; `read` may take other frames."""
        return EvalViews(**self._shared, clips=1, crops=1)

    @property
    def _shared(self) -> dict[str, Any]:
        """The settings of `StageViews`."""
        return {
            "frames": self.frames,
            "stride": self.stride,
            "size": self.size,
            "sampling": self.sampling,
            "fps": self.fps,
            "channels": self.channels,
        }
