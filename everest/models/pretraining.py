"""The base class of the models of pre-training, and the camera's motion as a task that joins any of them.

B batch, C channels, T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.methods.camera_task import MOTIONS, NUMBERS, moving_clips
from everest.methods.selector import Selector, choose
from everest.models.video_model import VideoModel
from everest.models.vit import Architecture


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PretrainingOutput:
    """The output of one forward pass of pre-training.

    It is no tuple: Accelerate would copy the tensors of a tuple to float32.
    """

    loss: Tensor  # scalar
    parts: dict[str, Tensor] = field(default_factory=dict)  # further scalars for metrics.jsonl, by name


class PretrainingModel(VideoModel):
    """An encoder with its last norm, and what learns with it.

    Args:
        camera: the weight of the task of everest.methods.camera_task in the loss; 0: without it.
    """

    stage: ClassVar = "pretrain"

    def __init__(self, architecture: Architecture, *, selector: Selector, camera: float) -> None:
        super().__init__(architecture, selector=selector, final_norm=True)
        self.camera_weight = camera
        self.camera_head = nn.Linear(self.encoder.width, MOTIONS) if camera else None

    def visible_features(self, frames: Tensor, noise: Tensor | None) -> Tensor:
        """The mean (B, D) of the encoded visible tokens of clips (B, C, T, H, W), bytes or normalized.

        Args:
            noise: (B, at least N) uniform in [0, 1). None: drawn from torch's default generator.
        Raises:
            ValueError: the clips do not have the model's size or are no frames.
        """
        encoder, grid = self.encoder, self.encoder.grid
        encoder.check(frames)
        if noise is None:
            noise = torch.rand(frames.size(0), grid.num_tokens, device=frames.device)
        x = self.to_input(frames)
        ids = choose(self.selector, x, grid, self.measure, noise[:, : grid.num_tokens]).visible
        return encoder(x, ids).mean(dim=1)

    def camera_loss(self, frames: Tensor, noise: Tensor | None) -> Tensor:
        """The mean squared error of the camera's motion that still frames of clips get; a scalar.

        Args:
            noise: (B, at least N + NUMBERS) uniform in [0, 1): first of the selection, last of the task.
                None: drawn from torch's default generator.
        """
        assert self.camera_head is not None
        if noise is None:
            noise = torch.rand(frames.size(0), self.encoder.grid.num_tokens + NUMBERS, device=frames.device)
        clips, motions = moving_clips(frames, noise[:, -NUMBERS:])
        features = self.visible_features(clips, noise)  # (B, D)
        return F.mse_loss(self.camera_head(features).float(), motions)
