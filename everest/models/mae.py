"""The masked autoencoder.

EVEREST, LVMAE, VideoMAE and ST-MAE differ in strategy, target and frame selection.

B batch, C channels, T frames, H W pixels, N tokens, t slices of a clip, S candidate slices, K visible, M
target tokens, D width of the encoder, E width of the decoder, P target values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from everest.methods.grid import ClipNoise, TokenGrid, TokenSelection, check_inputs, gather_tokens
from everest.methods.selection import Strategy, TopK, draw_slices, kept_per_slice
from everest.methods.targets import Target
from everest.models.base import PretrainingModel, PretrainingOutput
from everest.models.block import Block, Blocks
from everest.models.positions import add_positions, rotation_of
from everest.models.vit import Architecture, init_linear_layers

if TYPE_CHECKING:
    from everest.tokenizer.spec import FrozenTokenizer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoencoderOutput(PretrainingOutput):
    """The output of one forward pass of an autoencoder."""

    prediction: Tensor  # (B, M, P), without gradient
    target: Tensor  # (B, M, P)
    selection: TokenSelection
    frames: Tensor  # (B, C, T, H, W): the clips as given; with frame selection, drawn from their candidates


class Decoder(nn.Module):
    """Predicts target tokens from visible ones (VideoMAE §3.4). Its input: visible, then mask tokens."""

    def __init__(self, architecture: Architecture, *, target_width: int) -> None:
        super().__init__()
        model, norms = architecture.model, architecture.norms
        width, num_heads = model.backbone_size.decoder_width, model.backbone_size.decoder_heads
        rotary = model.positions == "rotary"
        self.blocks = Blocks(
            (Block(width, num_heads, rotary=rotary, eps=norms.eps) for _ in range(model.decoder_depth)),
            checkpointing=architecture.checkpointing,
        )
        self.norm = nn.LayerNorm(width, eps=norms.last_eps)
        self.head = nn.Linear(width, target_width)
        self.position = architecture.make_positions(width, num_heads)

    def forward(self, encoded: Tensor, mask_token: Tensor, selection: TokenSelection) -> Tensor:
        """Predict the target tokens (B, M, P) from the encoded visible tokens (B, K, E)."""
        visible = add_positions(encoded, self.position, selection.visible)  # (B, K, E)
        masked = add_positions(mask_token, self.position, selection.target)  # (B, M, E)
        x = torch.cat([visible, masked], dim=1)  # (B, K + M, E)
        rotation = rotation_of(self.position, torch.cat([selection.visible, selection.target], dim=1))
        x = self.blocks(x, num_outputs=masked.size(1), rotation=rotation)  # (B, M, E)
        return self.head(self.norm(x))  # (B, M, P)


class MaskedAutoencoder(PretrainingModel):
    """Selects tokens, encodes the visible ones, decodes the targets, and computes the loss.

    benchmarks/plain_step.py has the same step, its blocks included, in plain code; a test compares them.

    Args:
        strategy: selects the visible and the target tokens (everest.methods.strategies).
        targets: `bound` to the clips of the model; computes the values of target tokens.
        tokenizer: the one whose scores the strategy may rank by.
        candidate_grid: see `PretrainingModel`; for a strategy that ranks by importance.
        recompute: compute the importance of the drawn slices again. By default it stays as it was among the
            candidates: a distance over a gap reflects the gap more than motion (our choice).
        camera: see `PretrainingModel`.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        strategy: Strategy,
        targets: Target,
        tokenizer: FrozenTokenizer | None = None,
        candidate_grid: TokenGrid | None = None,
        recompute: bool = False,
        camera: float = 0.0,
    ) -> None:
        super().__init__(architecture, strategy=strategy, candidate_grid=candidate_grid, camera=camera)
        self.targets = targets
        self.tokenizer = tokenizer
        self.scorer = None if tokenizer is None else tokenizer.scores
        self.recompute = recompute
        size = architecture.model.backbone_size
        self.encoder_to_decoder = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        self.decoder = Decoder(architecture, target_width=targets.width(self.embedding.tubelet))
        # As in the released programs, `encoder_to_decoder` and the embedding keep torch's default.
        init_linear_layers(self.encoder, self.decoder, init=nn.init.xavier_uniform_)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(
        self,
        frames: Tensor,
        *,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
        importance: Tensor | None = None,
        values: Tensor | None = None,
    ) -> AutoencoderOutput:
        """Compute loss and predictions of a batch.

        Args:
            frames: (B, C, T, H, W) uint8, or float32: normalized. With frame selection: the frames of all
                candidates, or clips of T frames, from which nothing is drawn.
            noise: (B, noise_layout.total) uniform in [0, 1); None: drawn from torch's default generator.
            selection: replaces the strategy's selection, for clips of T frames.
            importance: (B, N) float32, of all candidates' tokens, replaces what the strategy would compute.
            values: (B, N, P) of all tokens, replaces the values that `targets` computes.
        Raises:
            ValueError: invalid clips, selection or shapes, or `selection` with `importance`.
        """
        if noise is None:
            noise = self.new_noise(frames)
        if selection is None:
            clip_noise = self.noise_layout.split(noise)
            frames, importance = self.draw_clips(frames, clip_noise, importance)  # (B, C, T, H, W)
            x = self.to_input(frames)
            selection = self.select_tokens(x, clip_noise.tokens, importance=importance)
        else:
            if importance is not None:
                raise ValueError("importance has no effect on a given selection; leave one of them out")
            self.encoder.check(frames)
            selection.check(self.encoder.grid, frames.size(0))
            x = self.to_input(frames)
        check_inputs(self.encoder.grid, frames.size(0), noise=noise, values=values)

        encoded = self.encoder_to_decoder(self.encoder(x, selection.visible))  # (B, K, E)
        prediction = self.decoder(encoded, self.mask_token, selection)  # (B, M, P)

        if values is not None:
            target = gather_tokens(values, selection.target)  # (B, M, P)
        else:
            clips = frames if self.targets.of_frames else x
            if self.targets.is_external:  # everest's own also take bytes
                clips = self.pixels.normalized(clips)
            target = self.targets.values(clips, selection.target, self.embedding.tubelet)
        loss = self.targets.loss(prediction, target, selection.scored())
        metrics: dict[str, Tensor] = {}
        if self.camera_head is not None and self.training:
            metrics["camera_loss"] = self.camera_loss(frames, noise)
            loss = loss + self.camera_weight * metrics["camera_loss"]
        return AutoencoderOutput(
            loss=loss,
            metrics=metrics,
            prediction=prediction.detach(),
            target=target,
            selection=selection,
            frames=frames,
        )

    def select(self, frames: Tensor, noise: Tensor | None = None) -> TokenSelection:
        """Select tokens as `forward` does: (B, K) visible and (B, M) target ids."""
        clip_noise = self.noise_layout.split(self.new_noise(frames) if noise is None else noise)
        clips, importance = self.draw_clips(frames, clip_noise)
        return self.select_tokens(self.to_input(clips), clip_noise.tokens, importance=importance)

    def draw_clips(
        self, frames: Tensor, noise: ClipNoise, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw clips from candidate frames; slices with many kept tokens are likely (EVEREST §4.2).

        Args:
            frames: of all candidates, (B, C, S * frames of a slice, H, W); clips (B, C, T, H, W) stay as
                they are, with their importance.
            importance: (B, N) float32 of all tokens of `frames`; None: the strategy computes it.
        Returns:
            The clips (B, C, T, H, W), and the importance of their tokens; None if it is still to be computed.
        """
        is_clip = frames.dim() == 5 and frames.size(2) == self.encoder.num_frames
        candidates = self.candidate_grid
        grid = self.encoder.grid if is_clip else candidates
        self.encoder.check(frames, grid)
        check_inputs(grid, frames.size(0), noise=noise.tokens, importance=importance)
        if is_clip:
            return frames, importance
        assert isinstance(self.strategy, TopK)
        if importance is None:
            importance = self.strategy.checked_importance(self.to_input(frames), self.embedding)
            assert importance is not None
        counts = kept_per_slice(self.strategy, importance, candidates)  # (B, S)
        drawn = draw_slices(counts, noise.slices, self.encoder.grid.t)  # (B, t)
        index = drawn[:, None, :, None, None, None]  # of (B, C, S, frames of a slice, H, W)
        clips = frames.unflatten(2, (candidates.t, -1)).take_along_dim(index, dim=2).flatten(2, 3)
        by_slice = importance.unflatten(1, (candidates.t, -1))  # (B, S, h*w)
        return clips, None if self.recompute else gather_tokens(by_slice, drawn).flatten(1)
