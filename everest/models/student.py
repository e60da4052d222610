"""Pre-training without a decoder: an encoder of few tokens learns the features of the weights it began from.

Image weights see each frame by itself. The student attends over the kept tokens of the whole clip, and its
positions in time are learned from zero. At the tokens that it keeps it predicts the features that its own
frozen start computes from all tokens, as UMT (Li et al. 2023) does with another teacher.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.values import settings
from everest.methods.grid import check_inputs, gather_tokens
from everest.methods.targets import FeatureTargets, TeacherUse
from everest.models.base import PretrainingModel, PretrainingOutput
from everest.models.clip_spec import PretrainSpec
from everest.models.vit import init_linear_layers

Teacher = Callable[[Tensor], Tensor]  # of clips (B, C, T, H, W), the features (B, N, D) of all tokens


@settings
class StudentSpec(PretrainSpec):
    """An encoder that learns the features of its own start."""

    target: FeatureTargets
    teacher: TeacherUse

    def build(self, teacher: Teacher | None = None) -> Student:
        """Build the model; without a `teacher` its features are not computed."""
        return Student(self, teacher)


class Student(PretrainingModel):
    """Encodes the kept tokens, and compares them with the teacher's features of these tokens."""

    def __init__(self, spec: StudentSpec, teacher: Teacher | None) -> None:
        super().__init__(spec)
        self.teacher = teacher
        init_linear_layers(self.encoder, init=nn.init.xavier_uniform_)

    def forward(
        self, frames: Tensor, *, noise: Tensor | None = None, values: Tensor | None = None
    ) -> PretrainingOutput:
        """Compute the loss of a batch: the smooth L1 distance of the features, in float32.

        Args:
            frames: (B, C, T, H, W) uint8, or float32: normalized.
            noise: (B, noise_layout.total) uniform in [0, 1); None: sampled from torch's default generator.
            values: (B, N, D) of all tokens, replaces the teacher's features.
        """
        self.encoder.check(frames)
        check_inputs(self.encoder.grid, frames.size(0), values=values)
        noise = self.new_noise(frames) if noise is None else noise
        if values is None:
            if self.teacher is None:
                raise ValueError(
                    "the model was opened without its teacher; give `values`, or train it with pretrain"
                )
            values = self.teacher(frames)
        x = self.to_input(frames)
        ids = self.select_tokens(x, self.noise_layout.split(noise).tokens).visible  # (B, K)
        features = self.encoder(x, ids)  # (B, K, D)
        loss = F.smooth_l1_loss(features.float(), gather_tokens(values, ids).float())
        loss, metrics = self.with_camera_loss(loss, frames, noise)
        return PretrainingOutput(loss=loss, metrics=metrics)
