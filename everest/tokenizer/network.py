"""The adaptive tokenizer of LVMAE: codes for every token of a clip, and which of them the clip needs.

Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024, §3.3: encoder, mask, quantizer,
decoder, in this order, trained together with the scorer that the mask is taken from.

B batch, T frames, H W pixels, D code dimensions, N = t*h*w tokens, W windows of a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.sizes import TokenizerConfig, TopKKind
from everest.methods.grid import TokenGrid, num_kept
from everest.tokenizer.fsq import FSQ
from everest.tokenizer.layers import VideoDecoder3D, VideoEncoder3D
from everest.tokenizer.scorer import TokenScorer, soft_topk_mask


class TokenizerOutput(NamedTuple):
    """What a tokenizer says of all tokens of the clips, in the order of token ids."""

    # (B, N, D) float32: before the quantizer; `quantizer.bound` brings it to the values' range.
    latent: Tensor
    values: Tensor  # (B, N, D) float32 in [-1, 1]: quantised
    codes: Tensor  # (B, N) int64
    scores: Tensor  # (B, t, h, w) float32: higher is needed more


class TokenizerReconstruction(NamedTuple):
    """What one training pass gives."""

    loss: Tensor  # scalar: mean squared error of the pixels in [0, 1]
    frames: Tensor  # (B, 3, T, H, W): rebuilt, in the size that the tokenizer works in
    original: Tensor  # (B, 3, T, H, W): the clips in that size
    mask: Tensor  # (B, t, h, w) of 0 and 1: the tokens that they were rebuilt from


class AdaptiveTokenizer(nn.Module):
    """Cuts clips into windows, each of which is encoded by itself; scores look across their borders.

    Clips are float (B, 3, T, H, W) in [0, 1], T a multiple of the window, H and W of the tubelet.

    Args:
        window: frames that are encoded together; it has at least two slices, for the first is always kept.
        keep: share of a window's other tokens that a clip is rebuilt from while training.
        select: how the choice of these learns (everest.tokenizer.scorer).
        temperature: of that choice.
        checkpointing: compute activations again in the backward pass.
    """

    target_mean: Tensor  # (D,) of the values over the training set, once it is trained
    target_std: Tensor  # (D,)

    def __init__(
        self,
        config: TokenizerConfig,
        *,
        window: int,
        keep: float,
        select: TopKKind = "straight-through",
        temperature: float = 0.5,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if window % config.stride[0] or window < 2 * config.stride[0]:
            raise ValueError(
                f"a window of {window} frames must be a multiple of {config.stride[0]}, twice at least"
            )
        self.config = config
        self.window = window
        self.keep = keep
        self.select: TopKKind = select
        self.temperature = temperature
        self.encoder = VideoEncoder3D(config, checkpointing=checkpointing)
        self.quantizer = FSQ(config.levels)
        self.decoder = VideoDecoder3D(config, checkpointing=checkpointing)
        self.scorer = TokenScorer(config.stride, config.scorer_channels)
        self.register_buffer("target_mean", torch.zeros(len(config.levels)))
        self.register_buffer("target_std", torch.ones(len(config.levels)))

    @property
    def tubelet(self) -> tuple[int, int, int]:
        return self.config.tubelet

    def grid(self, clip: Tensor) -> TokenGrid:
        """The tokens of clips (B, 3, T, H, W).

        Raises:
            ValueError: they are no such clips, or do not divide into windows and tokens.
        """
        if clip.dim() != 5 or clip.size(1) != 3 or not clip.is_floating_point():
            raise ValueError(
                f"expected float (B, 3, T, H, W) in [0, 1], got {clip.dtype} {tuple(clip.shape)}"
            )
        frames, height, width = clip.shape[2:]
        _, p, q = self.tubelet
        if frames % self.window or height % p or width % q:
            raise ValueError(
                f"clips of {frames} frames of {height} x {width} pixels do not divide into windows of "
                f"{self.window} frames and tokens of {p} x {q} pixels"
            )
        return TokenGrid.of_clip(frames=frames, size=(height, width), tubelet=self.tubelet)

    def scaled(self, clip: Tensor) -> Tensor:
        """The clips (B, 3, T, H, W) in the height and width that the tokenizer works in."""
        if self.config.input_scale == 1.0:
            return clip
        scale = (1.0, self.config.input_scale, self.config.input_scale)
        return F.interpolate(clip, scale_factor=scale, mode="area")

    def encode(self, clip: Tensor) -> TokenizerOutput:
        """Codes and scores of all tokens; windows are encoded by themselves and joined.

        A later window's first slice is scored against the last slice before it, the clip's first copies the
        second's scores.

        Raises:
            ValueError: see `grid`.
        """
        self.grid(clip)
        frames = self.scaled(clip)
        z = self._by_window(self.encoder, frames).float()  # (B, D, t, h, w)
        latent = z.flatten(2).transpose(1, 2)  # (B, N, D)
        values, codes = self.quantizer(latent)
        return TokenizerOutput(latent, values, codes, self.scorer(frames))

    def standardized(self, values: Tensor) -> Tensor:
        """(..., D) values with mean 0 and deviation 1 over the training set, as targets of a prediction."""
        return (values - self.target_mean) / self.target_std

    def reconstruct(self, clip: Tensor, keep: float | None = None, mask: Tensor | None = None) -> Tensor:
        """The clips rebuilt from some of their tokens: (B, 3, T, H, W) in the size the tokenizer works in.

        Args:
            keep: share of the ranked tokens, those of a window's later slices, that are kept, the highest
                scores first; None as in training. 1 keeps all.
            mask: (B, t, h, w) of 0 and 1, in place of the tokenizer's own choice.
        Raises:
            ValueError: see `grid`.
        """
        self.grid(clip)
        frames = self.scaled(clip)
        if mask is None:
            mask = self.choose(self.scorer(frames), keep=self.keep if keep is None else keep)
        return self._decode(frames, mask)

    def decode(self, values: Tensor, grid: TokenGrid) -> Tensor:
        """Values (B, N, D) of clips' tokens to frames (B, 3, T, H, W) in the size the tokenizer works in."""
        z = values.transpose(1, 2).unflatten(2, (grid.t, grid.h, grid.w))  # (B, D, t, h, w)
        return self._by_window(self.decoder, z, self.window // self.config.stride[0])

    def choose(self, scores: Tensor, *, keep: float, generator: torch.Generator | None = None) -> Tensor:
        """(B, t, h, w) of 0 and 1 by scores of the same shape: what a clip is rebuilt from.

        Of each window the first slice is kept whole (LVMAE §4.1), and of the others' tokens a share.

        Args:
            generator: of the order of equal scores; None is the same order for the same shape.
        """
        if generator is None:
            generator = torch.Generator(scores.device).manual_seed(0)
        slices = self.window // self.config.stride[0]
        windows = _cut(scores.unsqueeze(1), slices)[:, 0]  # (B * W, slices, h, w)
        ranked = windows[:, 1:].flatten(1)  # (B * W, ranked tokens)
        chosen = soft_topk_mask(
            ranked, num_kept(ranked.size(1), keep), self.select, self.temperature, generator
        )
        whole = torch.ones_like(windows[:, :1])
        kept = torch.cat([whole, chosen.view_as(windows[:, 1:])], dim=1)
        return _joined(kept.unsqueeze(1), len(scores))[:, 0]

    def forward(
        self, clip: Tensor, *, generator: torch.Generator | None = None, all_tokens: bool = False
    ) -> TokenizerReconstruction:
        """One training pass.

        Args:
            generator: see `choose`.
            all_tokens: rebuild the clips from all of their tokens.
        Raises:
            ValueError: see `grid`.
        """
        self.grid(clip)
        frames = self.scaled(clip)
        mask = self.choose(self.scorer(frames), keep=self.keep, generator=generator)
        # In the graph even where it is not used: DDP waits for a gradient of every weight.
        mask = torch.where(torch.tensor(all_tokens, device=mask.device), 1.0, mask)
        rebuilt = self._decode(frames, mask)
        return TokenizerReconstruction(F.mse_loss(rebuilt.float(), frames), rebuilt, frames, mask)

    def _decode(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Scaled frames by way of the tokens that a mask keeps; the others are 0 before they are rounded."""
        z = self._by_window(self.encoder, frames) * mask.unsqueeze(1)  # (B, D, t, h, w)
        values, _ = self.quantizer(z.movedim(1, -1))
        return self._by_window(self.decoder, values.movedim(-1, 1), self.window // self.config.stride[0])

    def _by_window(self, module: Callable[[Tensor], Tensor], x: Tensor, length: int | None = None) -> Tensor:
        """`module` on each `length` slices (a window's frames) of (B, C, T, H, W), joined again in time."""
        return _joined(module(_cut(x, length or self.window)), len(x))


def _cut(x: Tensor, length: int) -> Tensor:
    """(B, C, T, H, W) to (B * W, C, length, H, W)."""
    return x.unflatten(2, (-1, length)).movedim(2, 1).flatten(0, 1)


def _joined(windows: Tensor, batch: int) -> Tensor:
    """The inverse of `_cut` for `batch` clips."""
    return windows.unflatten(0, (batch, -1)).movedim(1, 2).flatten(2, 3)
