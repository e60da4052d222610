"""The adaptive tokenizer of LVMAE: it computes a code and an importance score for every token of a clip.

Gundavarapu et al., Extending Video Masked Autoencoders to 128 frames, 2024, §3.3: encoder, mask, quantizer,
decoder, in this order, trained together with the scorer that provides the mask.

B batch, T frames, H W pixels, D code dimensions, N = t*h*w tokens, W chunks of a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.tokenizer_settings import TokenizerArchitecture
from everest.methods.grid import TokenGrid, num_kept
from everest.tokenizer.layers import FSQ, TokenScorer, make_decoder, make_encoder, soft_topk_mask

# Heuristic: maximum number of values of a batch of chunks in the encoder's first layer; a chunk is never
# divided.
BATCH_VALUES: Final = 2**23


class TokenizerOutput(NamedTuple):
    """Codes and scores of all tokens of the clips, in the order of token ids."""

    latent: Tensor  # (B, N, D) float32 before the quantizer; `quantizer.bound` maps it to the values' range
    values: Tensor  # (B, N, D) float32 in [-1, 1]: quantized
    codes: Tensor  # (B, N) int64
    scores: Tensor  # (B, t, h, w) float32: a higher score means a token is needed more


class TokenizerReconstruction(NamedTuple):
    """The output of one training step. Frames have the scaled size, in which the tokenizer works."""

    loss: Tensor  # scalar: mean squared error of the pixels in [0, 1]
    frames: Tensor  # (B, 3, T, H, W): the reconstructed clips
    original: Tensor  # (B, 3, T, H, W): the scaled clips
    mask: Tensor  # (B, t, h, w) of 0 and 1: the tokens that the clips were reconstructed from


class AdaptiveTokenizer(nn.Module):
    """Splits clips into chunks and encodes each chunk separately. The scorer compares across chunks.

    Clips are float (B, 3, T, H, W) in [0, 1]. T is a multiple of the chunk, H and W of the tubelet; for
    other clips, methods raise the ValueError of `grid`.

    A chunk has at least two time indices, because all tokens of its first time index are kept.
    """

    target_mean: Tensor  # (D,) mean of the values over the training set, set at the end of training
    target_std: Tensor  # (D,) std of the values over the training set

    def __init__(self, spec: TokenizerArchitecture) -> None:
        super().__init__()
        config = spec.config
        self.spec = spec
        self.tubelet = config.tubelet
        self.chunk = spec.chunk
        self.num_time_indices = spec.chunk // config.stride[0]  # time indices per chunk
        self.encoder = make_encoder(config, checkpointing=spec.checkpointing)
        self.quantizer = FSQ(config.levels)
        self.decoder = make_decoder(config, checkpointing=spec.checkpointing)
        self.scorer = TokenScorer(config.stride, config.scorer_channels)
        self.register_buffer("target_mean", torch.zeros(len(config.levels)))
        self.register_buffer("target_std", torch.ones(len(config.levels)))

    def grid(self, clip: Tensor) -> TokenGrid:
        """The token grid of clips (B, 3, T, H, W)."""
        _, p, q = self.tubelet
        is_clip = clip.dim() == 5 and clip.size(1) == 3 and clip.is_floating_point()
        if not is_clip or clip.size(2) % self.chunk or clip.size(3) % p or clip.size(4) % q:
            raise ValueError(
                f"expected float (B, 3, T, H, W) in [0, 1] that divide into chunks of {self.chunk} frames "
                f"and tokens of {p} x {q} pixels, got {clip.dtype} {tuple(clip.shape)}"
            )
        frames, height, width = clip.shape[2:]
        return TokenGrid.of_clip(frames=frames, size=(height, width), tubelet=self.tubelet)

    def scaled(self, clip: Tensor) -> Tensor:
        """Resize clips (B, 3, T, H, W) to the height and width in which the tokenizer works."""
        scale = self.spec.config.input_scale
        return clip if scale == 1.0 else F.interpolate(clip, scale_factor=(1.0, scale, scale), mode="area")

    def encode(self, clip: Tensor) -> TokenizerOutput:
        """Compute the codes and scores of all tokens; see `latent` and `scores`."""
        latent = self.latent(clip)  # (B, N, D)
        values, codes = self.quantizer(latent)
        return TokenizerOutput(latent, values, codes, self.scores(clip))

    def latent(self, clip: Tensor) -> Tensor:
        """Encode clips to vectors before the quantizer: (B, N, D) float32. Chunks are encoded separately."""
        return self._in_batches(self.encoder, clip).float().flatten(2).transpose(1, 2)

    def scores(self, clip: Tensor) -> Tensor:
        """Score all tokens of clips: (B, t, h, w) float32.

        The first time index of a later chunk is scored against the last time index before it. The first time
        index of the clip copies the scores of the second.
        """
        return self.scorer.distances(self._in_batches(self.scorer.features, clip))

    def chunks_at_once(self, clip: Tensor) -> int:
        """Return the number of chunks of clips (B, C, T, H, W) that are encoded together."""
        config = self.spec.config
        channels = config.channels * config.multipliers[0]
        values = channels * prod(config.stem_grid(self.chunk, (clip.size(3), clip.size(4))))
        return max(1, BATCH_VALUES // values)

    def clips_at_once(self, clip: Tensor) -> int:
        """Return how many clips (B, C, T, H, W) are encoded together; 1 if a clip is encoded in parts."""
        return max(1, self.chunks_at_once(clip) * self.chunk // clip.size(2))

    def _in_batches(self, module: Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
        """Scale the chunks of clips (B, 3, T, H, W), apply `module` batch by batch, and join the results."""
        self.grid(clip)
        batches = _split(clip, self.chunk).split(self.chunks_at_once(clip))
        return _join(torch.cat([module(self.scaled(batch)) for batch in batches]), len(clip))

    def select_tokens(
        self, scores: Tensor, *, keep: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Select the tokens from which a clip is reconstructed, by scores (B, t, h, w): a mask of 0 and 1.

        All tokens of a chunk's first time index are kept (LVMAE §4.1), and a fraction `keep` of its other
        tokens, those with the highest scores.

        Args:
            generator: draws the order of equal scores. None: the order depends on the shape only.
        """
        if generator is None:
            generator = torch.Generator(scores.device).manual_seed(0)
        chunks = _split(scores.unsqueeze(1), self.num_time_indices)[:, 0]  # (B * W, time indices, h, w)
        ranked = chunks[:, 1:].flatten(1)  # (B * W, ranked tokens)
        selected = soft_topk_mask(ranked, num_kept(ranked.size(1), keep), generator)
        first_slice = torch.ones_like(chunks[:, :1])
        mask = torch.cat([first_slice, selected.view_as(chunks[:, 1:])], dim=1)
        return _join(mask.unsqueeze(1), len(scores))[:, 0]

    def reconstruct(self, clip: Tensor, keep: float | None = None, mask: Tensor | None = None) -> Tensor:
        """Reconstruct clips from some of their tokens: (B, 3, T, H, W) in the scaled size.

        Args:
            keep: fraction of the ranked tokens (all time indices of a chunk but the first) that are kept,
                highest scores first. None: the fraction of training; 1 keeps all tokens.
            mask: (B, t, h, w) of 0 and 1; it replaces the tokenizer's selection.
        """
        self.grid(clip)
        frames = self.scaled(clip)
        if mask is None:
            mask = self.select_tokens(self.scorer(frames), keep=self.spec.keep if keep is None else keep)
        return self._reconstruct(frames, mask)

    def decode(self, values: Tensor, grid: TokenGrid) -> Tensor:
        """Decode values of tokens (B, N, D) to frames (B, 3, T, H, W) in the scaled size."""
        z = values.transpose(1, 2).unflatten(2, (grid.t, grid.h, grid.w))  # (B, D, t, h, w)
        return _join(self.decoder(_split(z, self.num_time_indices)), len(z))

    def forward(
        self, clip: Tensor, *, generator: torch.Generator | None = None, all_tokens: bool = False
    ) -> TokenizerReconstruction:
        """Reconstruct clips and compute the loss, for training.

        Args:
            generator: see `select_tokens`.
            all_tokens: reconstruct the clips from all of their tokens.
        """
        self.grid(clip)
        frames = self.scaled(clip)
        mask = self.select_tokens(self.scorer(frames), keep=self.spec.keep, generator=generator)
        if all_tokens:  # the mask stays in the graph: DDP waits for a gradient of every weight
            mask = 1 + 0 * mask
        reconstructed = self._reconstruct(frames, mask)
        return TokenizerReconstruction(F.mse_loss(reconstructed.float(), frames), reconstructed, frames, mask)

    def _reconstruct(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Encode and decode scaled frames; tokens that the mask drops are set to 0 before quantization."""
        z = _join(self.encoder(_split(frames, self.chunk)), len(frames)) * mask.unsqueeze(1)
        values, _ = self.quantizer(z.movedim(1, -1))  # (B, t, h, w, D)
        return _join(self.decoder(_split(values.movedim(-1, 1), self.num_time_indices)), len(frames))


def _split(x: Tensor, length: int) -> Tensor:
    """Split (B, C, T, H, W) into chunks (B * W, C, length, H, W)."""
    return x.unflatten(2, (-1, length)).movedim(2, 1).flatten(0, 1)


def _join(chunks: Tensor, batch: int) -> Tensor:
    """The inverse of `_split` for `batch` clips."""
    return chunks.unflatten(0, (batch, -1)).movedim(1, 2).flatten(2, 3)
