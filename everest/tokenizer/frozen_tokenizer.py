"""The trained tokenizer that a model uses.

B batch, C channels, T frames, H W pixels, N tokens, M target tokens, D code dimensions, P = D values, or the
sum of the levels of all dimensions; t p q a tubelet's frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.methods.grid import gather_patches, gather_tokens
from everest.methods.targets import CodeSpace
from everest.system.private_apis import never_compile
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.video.pixels import IMAGENET, PixelStatistics


class FrozenTokenizer:
    """A trained tokenizer that a model uses. It is not part of the model's weights, nor trained or copied.

    Args:
        load: called when the tokenizer is first needed; clips from a token cache never need it.
        levels: number of levels of each code dimension.
        pixels: pixel statistics of the model's clips. The tokenizer itself takes frames in [0, 1].
    """

    def __init__(
        self,
        load: Callable[[], AdaptiveTokenizer],
        levels: tuple[int, ...],
        pixels: PixelStatistics = IMAGENET,
    ) -> None:
        self._load = load
        self.levels = levels
        self.pixels = pixels

    @classmethod
    def wrap(cls, tokenizer: AdaptiveTokenizer, pixels: PixelStatistics = IMAGENET) -> FrozenTokenizer:
        """Freeze a tokenizer that is already loaded."""
        return cls(lambda: tokenizer, tokenizer.quantizer.levels, pixels)

    @cached_property
    def tokenizer(self) -> AdaptiveTokenizer:
        return self._load().eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTokenizer:
        return self  # the model's weight average shares it

    def on(self, device: torch.device) -> AdaptiveTokenizer:
        """The tokenizer, moved to the device of the clips."""
        if self.tokenizer.target_mean.device != device:
            self.tokenizer.to(device)
        return self.tokenizer

    @torch.no_grad()
    def scores(self, frames: Tensor) -> Tensor:
        """Score tokens (B, N) float32 of clips (B, C, T, H, W), bytes or normalized; high is important."""
        return self._in_parts(self.on(frames.device).scores, frames).flatten(1)

    @torch.no_grad()
    def latent(self, frames: Tensor) -> Tensor:
        """Encode clips (B, C, T, H, W), bytes or normalized: (B, N, D) float32, before the quantizer."""
        return self._in_parts(self.on(frames.device).latent, frames)

    @never_compile  # a graph would repeat the tokenizer for every part of a batch
    def _in_parts(self, code: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Apply `code` to the pixels in [0, 1] of a few clips at a time, which saves memory."""
        parts = frames.split(self.tokenizer.clips_at_once(frames))
        return torch.cat([code(self.pixels.to_unit_range(part)) for part in parts])

    @torch.no_grad()
    def values(self, frames: Tensor, ids: Tensor, space: CodeSpace) -> Tensor:
        """Compute the targets (B, M, D) of the tokens `ids` (B, M): float32, or int64 levels for `codes`."""
        tokenizer = self.on(frames.device)
        latent = self.latent(frames)  # (B, N, D)
        values, codes = tokenizer.quantizer(latent)
        if space == "codes":
            return tokenizer.quantizer.digits(codes.gather(1, ids))
        values = values if space == "values" else tokenizer.quantizer.bound(latent)
        return (gather_tokens(values, ids) - tokenizer.target_mean) / tokenizer.target_std

    @torch.no_grad()
    def reconstructed(self, prediction: Tensor, frames: Tensor, ids: Tensor, space: CodeSpace) -> Tensor:
        """Decode the clip with predictions (B, M, P) at tokens `ids`: (B, M, C, t, p, q) in [0, 1]."""
        tokenizer = self.on(frames.device)
        values, _ = tokenizer.quantizer(self.latent(frames))  # (B, N, D)
        if space == "codes":
            parts = prediction.float().split(self.levels, dim=-1)
            digits = torch.stack([part.argmax(dim=-1) for part in parts], dim=-1)  # (B, M, D)
            predicted = digits / tokenizer.quantizer.steps - 1
        else:
            predicted = prediction.float() * tokenizer.target_std + tokenizer.target_mean  # (B, M, D)
        values = values.scatter(1, ids.unsqueeze(-1).expand(-1, -1, values.size(-1)), predicted)
        clips = tokenizer.decode(values, tokenizer.grid(frames)).clamp(0, 1)
        if clips.shape[-2:] != frames.shape[-2:]:
            clips = F.interpolate(clips, frames.shape[-3:])
        return gather_patches(clips, ids, tokenizer.tubelet)
