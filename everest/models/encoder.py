"""An encoder that chooses its tokens and predicts none: alone, or as the base of the classifier.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from everest.methods.grid import TokenSelection
from everest.methods.selector import Selector, choose
from everest.models.video_model import VideoModel
from everest.models.vit import Architecture, init_linear_layers


class SelectingModel(VideoModel):
    """A model that encodes the tokens of its selector and pools them."""

    stage: ClassVar = "finetune"
    head: nn.Module  # features (B, D) to the outputs

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
            noise: (B, at least N) uniform in [0, 1), in training with a selector that draws.
            selection: its visible tokens replace the selector's choice; nothing is predicted, so
                its target has no effect and may be empty, (B, 0).
        """
        selector, grid = self.selector, self.encoder.grid
        self.encoder.check(frames)
        if selection is not None:
            if keep is not None:
                raise ValueError(f"keep={keep} has no effect on a given selection; leave one of them out")
            selection.check(grid, frames.size(0), predicts=False)
            return selection.visible
        if noise is None:
            selector = selector.at_evaluation(keep)
            noise = torch.zeros(frames.size(0), grid.num_tokens, device=frames.device)  # nothing is drawn
        elif keep is not None:
            selector = selector.keeping(keep)
        ids = choose(selector, self.to_input(frames), grid, self.measure, noise).visible
        if ids.size(1) == 0:
            raise ValueError(f"keep={keep} leaves none of {grid.num_tokens} tokens")
        return ids

    @abstractmethod
    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) to (B, D)."""

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
            Of a classifier the logits (B, outputs) of all heads, joined; of an encoder the features (B, D).
        """
        ids = self.kept_tokens(frames, keep, noise, selection)  # (B, K)
        return self.head(self.pooled(self.encode(frames, ids)))


class VideoEncoder(SelectingModel):
    """An encoder with its last norm, and no decoder or head: the weights of programs that have neither.

    Args:
        selector: selects the tokens that are encoded, unless a call names another keep ratio.
    """

    def __init__(self, architecture: Architecture, *, selector: Selector) -> None:
        super().__init__(architecture, selector=selector, final_norm=True)
        self.head = nn.Identity()
        init_linear_layers(self.encoder, init=nn.init.xavier_uniform_)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The mean (B, D) of encoded tokens (B, K, D), as for an autoencoder."""
        return tokens.mean(dim=1)
