"""Models on clips: the base of all, of those with an encoder, with a decoder or views, with a selection.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.values import Input
from everest.methods.camera import MOTIONS, moving_clips
from everest.methods.grid import NoiseLayout, TokenGrid, TokenSelection
from everest.methods.importance import Embedding
from everest.methods.selection import Strategy
from everest.models.clip_spec import ClipModel
from everest.models.embedding import frame_differences
from everest.models.pooling import mean_and_change
from everest.models.vit import Architecture, Encoder, init_linear_layers


class VideoModel(ClipModel):
    """A model with an encoder of tokens.

    Attributes:
        input_kind: the input that `to_input` computes: frames or their differences.
    """

    def __init__(
        self, architecture: Architecture, *, strategy: Strategy, final_norm: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.input_kind: Input = architecture.model.input
        self.pixels = architecture.pixels
        self.strategy = strategy
        self.encoder = Encoder(architecture, final_norm=final_norm, drop_path=drop_path)

    @property
    def embedding(self) -> Embedding:
        """The embedding by which the strategy measures importance."""
        return self.encoder.patch_embed

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of timm's layer decay: embedding with positions, blocks, all other parameters."""
        return {
            "stem": r"encoder\.(?:patch_embed\.|position\.|class_token|registers|norm_before\.)",
            "blocks": [(r"encoder\.blocks\.(\d+)\.", None)],
        }

    def to_input(self, frames: Tensor) -> Tensor:
        """Map clips (B, C, T, H, W), bytes or normalized, to the input of encoder and strategy."""
        return frames if self.input_kind == "frames" else frame_differences(frames, self.pixels)

    def encode(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized: (B, K, D)."""
        return self.encoder(self.to_input(frames), ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PretrainingOutput:
    """The output of one forward pass of pre-training.

    It is no tuple: Accelerate would copy the tensors of a tuple to float32.
    """

    loss: Tensor  # scalar
    parts: dict[str, Tensor] = field(default_factory=dict)  # further scalars for metrics.jsonl, by name


class PretrainingModel(VideoModel):
    """An encoder with its last norm, and the head of the camera's task (everest.methods.camera).

    Args:
        candidates: the grid that a clip's slices are drawn from; None: clips are taken as they are.
        camera: the weight of the task in the loss; 0: without it.
    """

    stage: ClassVar = "pretrain"

    def __init__(
        self,
        architecture: Architecture,
        *,
        strategy: Strategy,
        candidates: TokenGrid | None = None,
        camera: float,
    ) -> None:
        super().__init__(architecture, strategy=strategy, final_norm=True)
        self.camera_weight = camera
        self.camera_head = nn.Linear(self.encoder.width, MOTIONS) if camera else None
        self.candidates = candidates or self.encoder.grid
        self.noise_layout = NoiseLayout.of(self.encoder.grid, self.candidates, camera=camera)

    def new_noise(self, frames: Tensor) -> Tensor:
        """The random numbers (B, noise_layout.total) of clips, from torch's default generator."""
        return torch.rand(frames.size(0), self.noise_layout.total, device=frames.device)

    def visible_features(self, frames: Tensor, noise: Tensor) -> Tensor:
        """The mean (B, D) of the encoded visible tokens of clips (B, C, T, H, W), bytes or normalized.

        Args:
            noise: (B, at least N) uniform in [0, 1).
        """
        encoder = self.encoder
        encoder.check(frames)
        x = self.to_input(frames)
        visible = self.strategy.select(x, encoder.grid, self.embedding, noise).visible
        return encoder(x, visible).mean(dim=1)

    def camera_loss(self, frames: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error, a scalar, of predicting the motion simulated on still frames.

        Args:
            noise: (B, noise_layout.total) uniform in [0, 1).
        """
        assert self.camera_head is not None
        uniform = self.noise_layout.split(noise)
        clips, motions = moving_clips(frames, uniform.camera)
        predicted = self.camera_head(self.visible_features(clips, uniform.tokens))  # (B, MOTIONS)
        return F.mse_loss(predicted.float(), motions)


class SelectingModel(VideoModel):
    """A model that encodes the tokens of its strategy and pools them."""

    stage: ClassVar = "finetune"
    head: nn.Module  # features (B, F) to the outputs

    def kept_tokens(
        self,
        frames: Tensor,
        keep: float | None = None,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
    ) -> Tensor:
        """Select the tokens to encode: ids (B, K).

        Args:
            keep: overrides the keep ratio of training.
            noise: (B, at least N) uniform in [0, 1), in training.
            selection: its visible tokens replace the strategy's choice; nothing is predicted, so
                its target has no effect and may be empty, (B, 0).
        """
        strategy, grid = self.strategy, self.encoder.grid
        self.encoder.check(frames)
        if selection is not None:
            if keep is not None:
                raise ValueError(f"keep={keep} has no effect on a given selection; leave one of them out")
            selection.check(grid, frames.size(0), predicts=False)
            return selection.visible
        if noise is None:
            strategy = strategy.at_evaluation(keep)
            noise = torch.zeros(frames.size(0), grid.num_tokens, device=frames.device)  # nothing is drawn
        elif keep is not None:
            strategy = strategy.keeping(keep)
        ids = strategy.select(self.to_input(frames), grid, self.embedding, noise).visible
        if ids.size(1) == 0:
            raise ValueError(f"keep={keep} leaves none of {grid.num_tokens} tokens")
        return ids

    def pooled(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) with their ids (B, K): by `mean_and_change` to (B, 4D).

        A classifier may pool otherwise.
        """
        return mean_and_change(tokens, ids, self.encoder.grid)

    def features(self, frames: Tensor, keep: float | None = None) -> Tensor:
        """The input (B, F) of the head for clips (B, C, T, H, W), bytes or normalized."""
        ids = self.kept_tokens(frames, keep)  # (B, K)
        return self.pooled(self.encode(frames, ids), ids)

    def forward(
        self,
        frames: Tensor,
        *,
        keep: float | None = None,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
    ) -> Tensor:
        """Compute the outputs of clips (B, C, T, H, W), bytes or normalized.

        Args:
            keep, noise, selection: which tokens are encoded; see `kept_tokens`.
        Returns:
            Of a classifier the logits (B, outputs) of all heads, joined; of an encoder the features (B, 4D).
        """
        ids = self.kept_tokens(frames, keep, noise, selection)  # (B, K)
        return self.head(self.pooled(self.encode(frames, ids), ids))


class VideoEncoder(SelectingModel):
    """An encoder with its last norm, and no decoder or head: the weights of programs that have neither.

    Args:
        strategy: selects the tokens that are encoded, unless a call names another keep ratio.
    """

    def __init__(self, architecture: Architecture, *, strategy: Strategy) -> None:
        super().__init__(architecture, strategy=strategy, final_norm=True)
        self.head = nn.Identity()
        init_linear_layers(self.encoder, init=nn.init.xavier_uniform_)
