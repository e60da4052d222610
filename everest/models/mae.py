"""The masked autoencoder.

EVEREST, LVMAE, VideoMAE and ST-MAE differ in strategy, target and frame selection.

B batch, C channels, T frames, H W pixels, N tokens, t time indices of a clip, S candidate time indices, K
visible, M target tokens, D width of the encoder, E width of the decoder, P target values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from everest.config.stage_settings import FrameSelectionSettings
from everest.config.values import settings
from everest.methods.grid import NoiseLayout, TokenSelection, check_inputs, gather_tokens
from everest.methods.selection import TopK, count_kept_tokens, measure_importance, sample_time_indices
from everest.methods.targets import AnyTarget, FeatureTargets, TargetModule, TeacherUse
from everest.models.base import PretrainingModel, PretrainingOutput
from everest.models.block import Block, Blocks
from everest.models.clip_spec import PretrainSpec
from everest.models.positions import add_positions, rotation_of
from everest.models.vit import Architecture, init_linear_layers
from everest.tokenizer.spec import TokenizerUse

if TYPE_CHECKING:
    from everest.tokenizer.frozen_tokenizer import FrozenTokenizer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoencoderOutput(PretrainingOutput):
    """The output of one forward pass of an autoencoder."""

    prediction: Tensor  # (B, M, P), without gradient
    target_values: Tensor  # (B, M, P)
    selection: TokenSelection
    frames: Tensor  # (B, C, T, H, W): the clips as given; with frame selection, sampled from their candidates


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
        masked = add_positions(mask_token, self.position, selection.predicted)  # (B, M, E)
        x = torch.cat([visible, masked], dim=1)  # (B, K + M, E)
        rotation = rotation_of(self.position, torch.cat([selection.visible, selection.predicted], dim=1))
        x = self.blocks(x, num_outputs=masked.size(1), rotation=rotation)  # (B, M, E)
        return self.head(self.norm(x))  # (B, M, P)


@settings
class AutoencoderSpec(PretrainSpec):
    """A model whose decoder predicts the target of hidden tokens."""

    target: AnyTarget
    tokenizer: TokenizerUse | None = None  # scores the tokens or makes the targets
    teacher: TeacherUse | None = None  # its features are the targets
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)

    @property
    def noise_layout(self) -> NoiseLayout:
        return NoiseLayout.of(self.grid, alpha=self.frame_selection.alpha, camera=self.camera)

    @property
    def tokenizer_in_step(self) -> TokenizerUse | None:
        """The tokenizer that a training step runs; with a token cache the clips come with their tokens."""
        return None if self.target.cache is not None else self.tokenizer

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, source: Path) -> Self:
        from everest.system.run_folder import is_tokenizer_file, tokenizer_file

        spec = super().from_settings(settings, source=source)
        tokenizer, moved = spec.tokenizer, tokenizer_file(source.parent)  # the run may have been moved
        if tokenizer and tokenizer.path and is_tokenizer_file(tokenizer.path) and moved.is_file():
            return replace(spec, tokenizer=replace(tokenizer, path=str(moved.resolve())))
        return spec

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.channels == 1 and (self.tokenizer or self.target.is_external):
            yield "pixels", "1 channel, where tokenizer or target take 3"
        if self.tokenizer is None and (self.selection.needs_tokenizer or self.target.needs_tokenizer):
            yield "tokenizer", "missing"
        if self.teacher is None and isinstance(self.target, FeatureTargets):
            yield "teacher", "missing"

    def without_files(self) -> Self:
        """The same model with an untrained tokenizer."""
        if self.tokenizer is None:
            return self
        return replace(self, tokenizer=replace(self.tokenizer, path=None, sha256=None))

    def build(self, teacher: object = None) -> MaskedAutoencoder:
        """Build the model; without a `teacher` its features are not computed."""
        tokenizer = None
        if self.tokenizer is not None:
            from everest.tokenizer.frozen_tokenizer import FrozenTokenizer  # only LVMAE's models have one

            levels = self.tokenizer.settings.config.levels
            tokenizer = FrozenTokenizer(self.tokenizer.load, levels, self.pixels)
            if self.tokenizer_in_step:  # with a token cache it is loaded later, if at all
                _ = tokenizer.tokenizer  # loads it now, to report a missing file at once
        frozen = tokenizer if self.target.needs_tokenizer else teacher or self.teacher
        targets = self.target.make(self.model.tubelet, self.pixels, frozen)
        return MaskedAutoencoder(self, targets=targets, tokenizer=tokenizer)


class MaskedAutoencoder(PretrainingModel):
    """Selects tokens, encodes the visible ones, decodes the targets, and computes the loss.

    benchmarks/plain_step.py has the same step, its blocks included, in plain code; a test compares them.

    Args:
        targets: computes the values of target tokens, and the loss.
        tokenizer: gives the scores by which some strategies rank tokens.
    """

    def __init__(
        self, spec: AutoencoderSpec, *, targets: TargetModule, tokenizer: FrozenTokenizer | None = None
    ) -> None:
        super().__init__(spec)
        self.targets = targets
        self.tokenizer = tokenizer
        self.scorer = None if tokenizer is None else tokenizer.scores
        size = spec.model.backbone_size
        self.encoder_to_decoder = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        self.decoder = Decoder(spec, target_width=targets.width)
        # As in the official code, `encoder_to_decoder` and the embedding keep torch's default.
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
                candidates, or clips of T frames, from which nothing is sampled.
            noise: (B, noise_layout.total) uniform in [0, 1); None: sampled from torch's default generator.
            selection: replaces the strategy's selection, for clips of T frames.
            importance: (B, N) float32, of all candidates' tokens, replaces what the strategy would compute.
            values: (B, N, P) of all tokens, replaces the values that `targets` computes.
        Raises:
            ValueError: invalid clips, selection or shapes, or `selection` with `importance`.
        """
        grid, batch = self.encoder.grid, frames.size(0)
        check_inputs(grid, batch, noise=noise, values=values)
        if selection is not None and importance is not None:
            raise ValueError("importance has no effect on a given selection; leave one of them out")
        noise = self.new_noise(frames) if noise is None else noise
        clip_noise, clips = self.noise_layout.split(noise), frames
        are_clips = frames.dim() == 5 and frames.size(2) == self.encoder.num_frames
        if selection is None and not are_clips:
            clips, importance = self.sample_clips(frames, clip_noise.time_indices, importance)
        self.encoder.check(clips)
        x = self.to_input(clips)  # (B, C, T, H, W)
        if selection is None:
            selection = self.select_tokens(x, clip_noise.tokens, importance=importance)
        else:
            selection.check(grid, batch)

        encoded = self.encoder_to_decoder(self.encoder(x, selection.visible))  # (B, K, E)
        prediction = self.decoder(encoded, self.mask_token, selection)  # (B, M, P)
        target = self.target_values(clips, x, selection.predicted, values)  # (B, M, P)
        loss = self.targets.loss(prediction, target, selection.loss_mask())
        loss, metrics = self.with_camera_loss(loss, clips, noise)
        return AutoencoderOutput(
            loss=loss,
            metrics=metrics,
            prediction=prediction.detach(),
            target_values=target,
            selection=selection,
            frames=clips,
        )

    def sample_clips(
        self, frames: Tensor, noise: Tensor, importance: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw clips from candidates; time indices with many kept tokens are likely (EVEREST §4.2).

        Args:
            frames: (B, C, S * frames of a time index, H, W).
            noise: (B, S) uniform in [0, 1).
            importance: (B, S*h*w) float32 of the candidates' tokens; None: the strategy computes it.
        Returns:
            The clips (B, C, T, H, W), and the importance (B, N) of their tokens; None: it is measured again.
        """
        candidates = self.noise_layout.candidates
        self.encoder.check(frames, candidates)
        check_inputs(candidates, frames.size(0), importance=importance)
        assert isinstance(self.strategy, TopK)
        if importance is None:
            x = self.to_input(frames)
            importance = measure_importance(self.strategy, x, self.embedding, self.scorer)
            assert importance is not None
        counts = count_kept_tokens(self.strategy, importance, candidates)  # (B, S)
        sampled = sample_time_indices(counts, noise, self.encoder.grid.t)  # (B, t)
        index = sampled[:, None, :, None, None, None]  # of (B, C, S, frames of a time index, H, W)
        clips = frames.unflatten(2, (candidates.t, -1)).take_along_dim(index, dim=2).flatten(2, 3)
        by_time_index = importance.unflatten(1, (candidates.t, -1))  # (B, S, h*w)
        # Measured again, over the gap that an omitted time index leaves, the importance would reflect the gap
        # more than motion (our choice).
        return clips, gather_tokens(by_time_index, sampled).flatten(1)

    def target_values(self, clips: Tensor, x: Tensor, ids: Tensor, values: Tensor | None) -> Tensor:
        """Compute what to predict at `ids` (B, M), or take it from all `values` (B, N, P): (B, M, P)."""
        if values is not None:
            return gather_tokens(values, ids)
        frames = clips if self.targets.of_frames else x
        if self.targets.settings.is_external:  # everest's own also take bytes
            frames = self.pixels.normalized(frames)
        return self.targets.values(frames, ids)
