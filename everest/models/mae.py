"""Pre-training by a masked autoencoder, and what it shares with other pre-training: noise, the camera's task.

EVEREST, LVMAE, VideoMAE and ST-MAE differ in strategy, target and frame selection.

B batch, C channels, T frames, H W pixels, N tokens, t slices of a clip, S candidates, K visible, M target
tokens, D width, P target values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.methods.camera import MOTIONS, moving_clips
from everest.methods.external import is_import_path
from everest.methods.grid import NoiseLayout, TokenGrid, TokenSelection, gather_tokens
from everest.methods.selection import Strategy, TopK, draw_slices, kept_per_slice
from everest.methods.targets import Target
from everest.models.block import Block, Blocks
from everest.models.clip_spec import VideoModel
from everest.models.positions import add_positions, rotation_of
from everest.models.vit import Architecture, init_linear_layers

if TYPE_CHECKING:
    from everest.tokenizer.spec import FrozenTokenizer


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reconstruction(PretrainingOutput):
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
        width, heads = model.backbone_size.decoder_width, model.backbone_size.decoder_heads
        rotary = model.positions == "rotary"
        self.blocks = Blocks(
            (Block(width, heads, rotary=rotary, eps=norms.eps) for _ in range(model.decoder_depth)),
            checkpointing=architecture.checkpointing,
        )
        self.norm = nn.LayerNorm(width, eps=norms.last_eps)
        self.head = nn.Linear(width, target_width)
        self.position = architecture.make_positions(width, heads)

    def forward(self, encoded: Tensor, mask_token: Tensor, selection: TokenSelection) -> Tensor:
        """Predict the target tokens (B, M, P) from the encoded visible tokens (B, K, D)."""
        visible = add_positions(encoded, self.position, selection.visible)  # (B, K, D)
        masked = add_positions(mask_token, self.position, selection.target)  # (B, M, D)
        x = torch.cat([visible, masked], dim=1)  # (B, K + M, D)
        rotation = rotation_of(self.position, torch.cat([selection.visible, selection.target], dim=1))
        x = self.blocks(x, last=masked.size(1), rotation=rotation)  # (B, M, D)
        return self.head(self.norm(x))  # (B, M, P)


class MaskedAutoencoder(PretrainingModel):
    """Selects tokens, encodes the visible ones, decodes the targets, and computes the loss.

    benchmarks/plain_step.py has the same step, its blocks included, in plain code; a test compares them.

    Args:
        strategy: selects the visible and the target tokens (everest.methods.strategies).
        targets: `bound` to the clips of the model; computes the values of target tokens.
        learned: its `scores` of tokens, for a strategy that ranks by learned scores.
        candidates: the grid that a clip's slices are drawn from (everest.methods.selection), by a
            strategy that ranks by importance; None: clips are taken as they are.
        recompute: measure the drawn slices against each other again. By default they keep the importance that
            they had among the candidates: a distance over a gap reflects the gap more than motion (ours).
        camera: see `PretrainingModel`.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        strategy: Strategy,
        targets: Target,
        learned: FrozenTokenizer | None = None,
        candidates: TokenGrid | None = None,
        recompute: bool = False,
        camera: float = 0.0,
    ) -> None:
        super().__init__(architecture, strategy=strategy, candidates=candidates, camera=camera)
        self.targets = targets
        self.learned = learned
        self.encoder.patch_embed.scores = learned and learned.scores
        self.recompute = recompute
        size = architecture.model.backbone_size
        self.encoder_to_decoder = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        self.decoder = Decoder(architecture, target_width=targets.width(self.embedding.tubelet))
        # As in the released programs, `encoder_to_decoder` and the embedding keep torch's default.
        init_linear_layers(self.encoder, self.decoder, init=nn.init.xavier_uniform_)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def select(self, frames: Tensor, noise: Tensor | None = None) -> TokenSelection:
        """Select tokens as `forward` does: (B, K) visible and (B, M) target ids."""
        return self._select(frames, self.new_noise(frames) if noise is None else noise)[2]

    def _select(
        self, frames: Tensor, noise: Tensor, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, TokenSelection]:
        """The clips, drawn from `frames` if these are candidates; the encoder's input; its tokens."""
        grid, uniform = self.encoder.grid, self.noise_layout.split(noise)
        is_clip = frames.dim() == 5 and frames.size(2) == self.encoder.num_frames
        self.encoder.check(frames, grid if is_clip else self.candidates)
        if not is_clip:
            frames, importance = self._draw_clips(frames, uniform.slices, importance)
        x = self.to_input(frames)
        return frames, x, self.strategy.select(x, grid, self.embedding, uniform.tokens, importance)

    def _draw_clips(
        self, frames: Tensor, uniform: Tensor, importance: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw clips (B, C, T, H, W) from candidate frames, by slices with many kept tokens (EVEREST §3.3).

        Returns:
            The clips, and the importance (B, N) of their tokens; None if it is measured again.
        """
        grid, offered = self.encoder.grid, self.candidates
        assert isinstance(self.strategy, TopK)
        if importance is None:
            importance = self.strategy.measure(self.to_input(frames), self.embedding)
            assert importance is not None
        counts = kept_per_slice(self.strategy, importance, offered)  # (B, S)
        slices = draw_slices(counts, uniform, grid.t)  # (B, t)
        index = slices[:, None, :, None, None, None]  # of (B, C, S, frames of a slice, H, W)
        clips = frames.unflatten(2, (offered.t, -1)).take_along_dim(index, dim=2).flatten(2, 3)
        by_slice = importance.unflatten(1, (offered.t, -1))  # (B, S, h*w)
        return clips, None if self.recompute else gather_tokens(by_slice, slices).flatten(1)

    def forward(
        self,
        frames: Tensor,
        *,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
        importance: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Reconstruction:
        """Compute loss and predictions of a batch.

        Args:
            frames: (B, C, T, H, W) uint8, or float32: normalized. With frame selection: the frames of all
                candidates, or clips of T frames, from which nothing is drawn.
            noise: (B, noise_layout.total) uniform in [0, 1); None: drawn from torch's default generator.
            selection: replaces the strategy's selection, for clips of T frames.
            importance: (B, N) float32, of all candidates' tokens, replaces the strategy's measurement.
            values: (B, N, P) of all tokens, replaces the values that `targets` computes.
        """
        if noise is None:
            noise = self.new_noise(frames)
        if selection is None:
            frames, x, selection = self._select(frames, noise, importance)
        else:
            self.encoder.check(frames)
            selection.check(self.encoder.grid, frames.size(0))
            x = self.to_input(frames)
        encoded = self.encoder_to_decoder(self.encoder(x, selection.visible))  # (B, K, D_dec)
        prediction = self.decoder(encoded, self.mask_token, selection)  # (B, M, P)
        if values is None:
            clips = frames if self.targets.of_frames else x
            if is_import_path(self.targets.kind):  # those of other packages take normalized clips
                clips = self.pixels.normalized(clips)
            target = self.targets.values(clips, selection.target, self.embedding.tubelet)
        else:
            target = gather_tokens(values, selection.target)  # (B, M, P)
        loss = self.targets.loss(prediction, target, selection.scored())
        parts: dict[str, Tensor] = {}
        if self.camera_head is not None and self.training:
            parts["camera_loss"] = self.camera_loss(frames, noise)
            loss = loss + self.camera_weight * parts["camera_loss"]
        return Reconstruction(
            loss=loss,
            parts=parts,
            prediction=prediction.detach(),
            target=target,
            selection=selection,
            frames=frames,
        )
