"""The masked autoencoder: EVEREST, VideoMAE and ST-MAE, told apart by their selector and target only.

B batch, C channels, T frames, H W pixels, N tokens, K visible, M target tokens, D width, P target values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from everest.config.sizes import BackboneSize
from everest.methods.frame_selection import FrameSelection, take_importance, take_slices
from everest.methods.grid import TokenGrid, TokenSelection, gather_tokens
from everest.methods.importance import Embedding, ScoredEmbedding, TokenScores
from everest.methods.ranked import ByImportance
from everest.methods.selector import Selector
from everest.methods.targets import TargetMaker
from everest.models.embedding import Positions, position_table
from everest.models.vit import Encoder, linear_layers, make_blocks, run_blocks


class Reconstruction(NamedTuple):
    """What one forward pass of pre-training gives."""

    loss: Tensor  # scalar
    prediction: Tensor  # (B, M, P)
    target: Tensor  # (B, M, P)
    selection: TokenSelection
    frames: Tensor  # (B, C, T, H, W): the clips, drawn from their candidates where there were more frames


class Decoder(nn.Module):
    """Predicts target tokens from encoded visible ones (VideoMAE §3.4): visible first, then mask tokens."""

    position: Tensor  # (N, D)

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        position: Tensor,
        target_width: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = make_blocks(width, depth, heads)
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, target_width)
        self.register_buffer("position", position, persistent=False)

    def forward(self, encoded: Tensor, mask_token: Tensor, selection: TokenSelection) -> Tensor:
        """(B, K, D) encoded visible tokens to (B, M, P) predictions of the targets."""
        seen = encoded + self.position[selection.visible]  # (B, K, D)
        asked = mask_token + self.position[selection.target]  # (B, M, D)
        # Under autocast `encoded` is of lower precision than the table; the sum has the table's.
        x = torch.cat([seen, asked], dim=1)  # (B, K + M, D)
        x = run_blocks(self.blocks, x, checkpointing=self.checkpointing, last=asked.size(1))
        return self.head(self.norm(x))  # (B, M, P)


class MaskedAutoencoder(nn.Module):
    """Select tokens, encode the visible, decode the targets, compare.

    Args:
        selector: which tokens (everest.methods.strategies).
        targets: what is predicted at them (everest.methods.targets).
        learned: scores tokens for a selector that asks for it.
        frame_selection: draws the clip's slices from more of them; its selector sorts by importance.
    """

    def __init__(
        self,
        size: BackboneSize,
        grid: TokenGrid,
        tubelet: tuple[int, int, int],
        *,
        selector: Selector,
        targets: TargetMaker,
        decoder_depth: int,
        learned: TokenScores | None = None,
        embedding_layers: int = 1,
        positions: Positions = "flat",
        frame_selection: FrameSelection | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.selector = selector
        self.targets = targets
        self.learned = learned
        self.frame_selection = frame_selection
        self.encoder = Encoder(
            size,
            grid,
            tubelet,
            final_norm=True,
            embedding_layers=embedding_layers,
            positions=positions,
            checkpointing=checkpointing,
        )
        self.encoder_to_decoder = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        self.decoder = Decoder(
            size.decoder_width,
            decoder_depth,
            size.decoder_heads,
            position=position_table(positions, grid, size.decoder_width),
            target_width=targets.width,
            checkpointing=checkpointing,
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """As the released programs: `encoder_to_decoder` and the embedding keep torch's default."""
        for layer in linear_layers(self.encoder, self.decoder):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    @property
    def measure(self) -> Embedding:
        """What the selector measures by: the tubelet embedding, and the learned scores if there are any."""
        embed = self.encoder.patch_embed
        return embed if self.learned is None else ScoredEmbedding(embed, self.learned)

    def select(self, frames: Tensor, noise: Tensor | None = None) -> TokenSelection:
        """The tokens that `forward` would choose: (B, K) visible and (B, M) target ids."""
        return self._choose(frames, noise)[1]

    def _choose(
        self, frames: Tensor, noise: Tensor | None, importance: Tensor | None = None
    ) -> tuple[Tensor, TokenSelection]:
        """The clips, drawn from their candidates if there are more frames, and the tokens chosen in them."""
        encoder, grid = self.encoder, self.encoder.grid
        offers = self.frame_selection
        if offers is not None and frames.dim() == 5 and frames.size(2) == encoder.num_frames:
            offers = None  # nothing to choose from
        offered = grid if offers is None else offers.grid(grid)
        encoder.check(frames, offered)
        if noise is None:
            noise = torch.rand(frames.size(0), offered.num_tokens + offered.t, device=frames.device)
        if importance is None:
            importance = self.selector.importance(frames, self.measure)  # (B, tokens offered)
        if offers is not None:
            assert isinstance(self.selector, ByImportance)
            assert importance is not None
            slices = offers.draw(self.selector, importance, noise, grid)  # (B, t)
            frames = take_slices(frames, slices, encoder.patch_embed.tubelet[0])
            if offers.recompute:
                importance = self.selector.importance(frames, self.measure)
            else:
                importance = take_importance(importance, slices, grid)
        return frames, self.selector(grid, importance=importance, noise=noise[:, : grid.num_tokens])

    def forward(
        self,
        frames: Tensor,
        *,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
        importance: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Reconstruction:
        """One pre-training pass.

        Args:
            frames: (B, C, T, H, W) float32, normalised; with frame selection its candidates, as many frames
                as `frame_selection` asks for, or clips of T frames as they are.
            noise: (B, at least N) uniform in [0, 1): the random part of the selection; with frame selection
                (B, tokens of the candidates + their slices). None draws it from torch's default generator.
            selection: a given choice instead of the selector's, for clips of T frames.
            importance: (B, N) float32, known before: the selector measures nothing.
            values: (B, N, …) of all tokens, known before, as `targets` makes them: it is not asked.
        Raises:
            ValueError: the clips are not of the size the model was built for or not normalised, or the given
                selection cannot be meant.
        """
        if selection is None:
            frames, selection = self._choose(frames, noise, importance)
        else:
            self.encoder.check(frames)
            selection.check(self.encoder.grid, frames.size(0))
        encoded = self.encoder_to_decoder(self.encoder(frames, selection.visible))  # (B, K, D_dec)
        prediction = self.decoder(encoded, self.mask_token, selection)  # (B, M, P)
        if values is None:
            target = self.targets.values(frames, selection.target)  # (B, M, P)
        else:
            target = gather_tokens(values, selection.target)
        loss = self.targets.loss(prediction, target, selection.scored())
        return Reconstruction(loss, prediction, target, selection, frames)
