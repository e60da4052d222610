"""Pre-training without a decoder: the features of several views of a video agree.

M videos, V views of each, B = M * V clips, C channels, T frames, H W pixels, N tokens, D width, P channels of
a projection.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from everest.config.stage_settings import ViewsSettings
from everest.config.values import settings
from everest.models.base import PretrainingModel, PretrainingOutput
from everest.models.clip_spec import PretrainSpec
from everest.models.vit import init_linear_layers
from everest.system.compute import full_precision

HIDDEN_WIDTH: Final = 512  # our choice: hidden channels of the projector
PROJECTED_WIDTH: Final = 128  # our choice: channels of the projections that are compared


class Projector(nn.Module):
    """Maps features to the projections that the loss compares; discarded after training.

    The norm uses the mean and variance of the batch: of all processes in training, of this one in evaluation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN_WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(HIDDEN_WIDTH, track_running_stats=False)
        self.last = nn.Linear(HIDDEN_WIDTH, PROJECTED_WIDTH, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (B, D) to (B, P)."""
        return self.last(self.norm(self.hidden(features)).relu())


@settings
class ViewSpec(PretrainSpec):
    """A model that compares views of a video."""

    views: ViewsSettings

    @property
    def compared_views(self) -> int:
        return self.views.number

    def build(self) -> ViewModel:
        return ViewModel(self)


class ViewModel(PretrainingModel):
    """Encodes the visible tokens of each view, projects their mean, and compares the views of the batch.

    Only the visible tokens of the strategy count. The first view of each video gives the still frame of the
    camera task.
    """

    def __init__(self, spec: ViewSpec) -> None:
        super().__init__(spec)
        self.settings = spec.views
        self.projector = Projector(self.encoder.width)
        init_linear_layers(self.encoder, self.projector, init=nn.init.xavier_uniform_)

    def forward(
        self, frames: Tensor, *, noise: Tensor | None = None, videos: Tensor | None = None
    ) -> PretrainingOutput:
        """Compute the loss of a batch. In training, all processes must call it with the same number of clips.

        Args:
            frames: (B, C, T, H, W) uint8, or float32: normalized; the views of a video follow each other.
            noise: (B, noise_layout.total) uniform in [0, 1); None: sampled from torch's default generator.
            videos: (B,) int64, the number of the video of each clip; None: V clips make a video.
        """
        views = self.settings.number
        if frames.size(0) % views:
            raise ValueError(f"{frames.size(0)} clips are no whole videos of {views} views")
        noise = self.new_noise(frames) if noise is None else noise
        if videos is None:
            videos = torch.arange(frames.size(0), device=frames.device) // views
        features = self.visible_features(frames, self.noise_layout.split(noise).tokens)  # (B, D)
        with full_precision(frames.device):
            features, video_ids = features.float(), videos[::views]  # (B, D), (M,)
            if self.training:
                features, video_ids = _gather_clips(features), _gather_clips(video_ids)
            projected = self.projector(features)  # (B, P)
            by_video = projected.unflatten(0, (-1, views))  # (M, V, P)
            metrics = {"view_spread": spread(projected.detach())}
            loss, metrics["view_top1"] = contrast(by_video, video_ids, temperature=self.settings.temperature)
        loss, camera_metrics = self.with_camera_loss(loss, frames[::views], noise[::views])
        return PretrainingOutput(loss=loss, metrics=metrics | camera_metrics)


def _gather_clips(own: Tensor) -> Tensor:
    """Join the clips' tensors (n, …) of all W processes, in their order: (W * n, …).

    Every process computes the same loss of all clips, and gradients are averaged over the processes. So the
    gradient of the `own` clips is multiplied by W here: the average is that of one process with all clips.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own
    world, rank = distributed.get_world_size(), distributed.get_rank()
    gathered = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(gathered, own.detach().contiguous())
    if own.requires_grad:
        gathered[rank] = world * own - (world - 1) * own.detach()
    return torch.cat(gathered)


def contrast(projections: Tensor, videos: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE: each view has to find the other views of its video among all views (SimCLR, Chen et al. 2020).

    If the batch has a video twice, its two samples are neither positives nor negatives of each other.

    Args:
        projections: (M, V, P) float32.
        videos: (M,) a number for each video.
    Returns:
        The loss, and the fraction of the views whose nearest other view is of the same video; scalars.
    """
    count, views = projections.shape[:2]
    directions = F.normalize(projections.flatten(0, 1), dim=1)  # (B, P)
    sample = torch.arange(count, device=directions.device).repeat_interleave(views)  # (B,)
    number = videos.repeat_interleave(views)
    itself = torch.eye(len(directions), dtype=torch.bool, device=directions.device)
    positive = (sample[:, None] == sample[None]) & ~itself  # (B, B)
    ignored = itself | ((number[:, None] == number[None]) & ~positive)
    similarity = (directions @ directions.T / temperature).masked_fill(ignored, -torch.inf)
    log_probability = similarity.log_softmax(dim=1)
    # An index by `positive` would wait for the device.
    loss = -log_probability.where(positive, 0.0).sum() / (len(directions) * (views - 1))
    nearest = similarity.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, nearest).float().mean()


def spread(projections: Tensor) -> Tensor:
    """The standard deviation of projections (B, P) of length 1, times the root of P; a scalar.

    1 if they point in all directions, 0 if all are the same: then the encoder has collapsed.
    """
    directions = F.normalize(projections, dim=1)
    return directions.var(dim=0, correction=0).mean().sqrt() * projections.size(1) ** 0.5
