"""The ViT encoder that all methods share: tubelet embedding, positions, blocks.

B batch, C channels, T frames, H W pixels, N tokens, K selected tokens, L last tokens, D width, t p q a
tubelet's frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from everest.config.sizes import BackboneSize
from everest.config.values import Gelu, Input, MlpKind, Positions, Rotary
from everest.methods.grid import TokenGrid, gather_patches
from everest.models.block import Block
from everest.models.embedding import TubeletEmbedding
from everest.models.positions import LearnedPositions, TokenPositions, add_positions, make_positions
from everest.models.rotary import RotaryPositions, Rotation
from everest.video.pixels import IMAGENET, PixelStatistics


def make_blocks(
    width: int,
    depth: int,
    heads: int,
    drop_path: float = 0.0,
    *,
    mlp_width: int | None = None,
    rotary: bool = False,
    mlp: MlpKind = "plain",
    gelu: Gelu = "exact",
) -> nn.ModuleList:
    """Make `depth` pre-norm blocks; stochastic depth grows linearly to `drop_path` (Huang et al. 2016)."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.ModuleList(
        Block(width, heads, rate, mlp_width=mlp_width, rotary=rotary, mlp=mlp, gelu=gelu) for rate in rates
    )


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    *,
    checkpointing: bool,
    last: int | None = None,
    rotation: Rotation | None = None,
) -> Tensor:
    """Run the blocks on tokens (B, K, D).

    Args:
        checkpointing: recompute each block in the backward pass.
        last: L, return the outputs of the last L tokens only, (B, L, D).
        rotation: of the tokens, if their positions are rotary.
    """
    for number, block in enumerate(blocks, start=1):
        block_last = last if number == len(blocks) else None
        if checkpointing and block.training:
            x = checkpoint(block, x, last=block_last, rotation=rotation, use_reentrant=False)
        else:
            x = block(x, last=block_last, rotation=rotation)
    return x


def _learned_tokens(number: int, width: int) -> nn.Parameter | None:
    """New tokens (1, number, width), as a class token starts; None for 0."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, number, width), std=0.02)) if number else None


def init_linear_layers(*modules: nn.Module, init: Callable[[Tensor], Tensor]) -> None:
    """Apply `init` to the weight of every Linear inside the modules, and set the biases to zero."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The encoder of a model, and its input: the same whatever the model is trained for.

    Attributes:
        size: of the encoder, and the width and heads of a decoder.
        grid: the clip's tokens, which fix their positions.
        embedding_layers: Linear layers of the tubelet embedding.
        trained_grid: the tokens that interpolated positions were computed for; None: `grid`.
        class_token: put a learned token in front of the embedded ones. It attends with them in every block
            and is left out of the output, as in ST-MAE, so that features are computed from a clip's tokens.
        registers: more such tokens, which have no position (Darcet et al. 2024).
        rotary: of image models: places turn queries and keys, in addition to the positions.
        norm_before: LayerNorm before the blocks.
        mlp, gelu: of the encoder's blocks.
        input: what encoder and selector take, made from the normalized frames.
        checkpointing: recompute each block in the backward pass.
        pixels: normalize clips of bytes, and fix the number of channels.
    """

    size: BackboneSize
    grid: TokenGrid
    tubelet: tuple[int, int, int]
    embedding_layers: int = 1
    positions: Positions = "flat"
    trained_grid: TokenGrid | None = None
    class_token: bool = False
    registers: int = 0
    rotary: Rotary = "none"
    norm_before: bool = False
    mlp: MlpKind = "plain"
    gelu: Gelu = "exact"
    input: Input = "frames"
    checkpointing: bool = False
    pixels: PixelStatistics = IMAGENET

    def encoder_positions(self) -> TokenPositions:
        return make_positions(
            self.positions,
            self.grid,
            self.size.width,
            self.size.heads,
            class_token=self.class_token,
            trained_grid=self.trained_grid,
        )

    def decoder_positions(self) -> TokenPositions:
        return make_positions(
            self.positions,
            self.grid,
            self.size.decoder_width,
            self.size.decoder_heads,
            trained_grid=self.trained_grid,
        )


class Encoder(nn.Module):
    """Embeds the selected tokens, adds their positions, runs the blocks.

    Args:
        final_norm: LayerNorm after the last block (pre-training); the classifier norms the mean instead.
        drop_path: the rate of stochastic depth of the last block.
    """

    def __init__(self, architecture: Architecture, *, final_norm: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        size, grid, tubelet = architecture.size, architecture.grid, architecture.tubelet
        self.grid = grid
        self.num_frames = grid.t * tubelet[0]  # T
        self.width = size.width
        self.num_heads = size.heads
        self.checkpointing = architecture.checkpointing
        self.pixels = architecture.pixels
        self.patch_embed = TubeletEmbedding(
            size.width, tubelet, layers=architecture.embedding_layers, pixels=self.pixels
        )
        self.blocks = make_blocks(
            size.width,
            size.depth,
            size.heads,
            drop_path,
            mlp_width=size.mlp_width,
            rotary=architecture.positions == "rotary" or architecture.rotary != "none",
            mlp=architecture.mlp,
            gelu=architecture.gelu,
        )
        self.norm_before = LayerNorm(size.width) if architecture.norm_before else nn.Identity()
        self.norm = LayerNorm(size.width) if final_norm else nn.Identity()
        self.position = architecture.encoder_positions()
        self.rotary = None
        if architecture.rotary != "none":
            self.rotary = RotaryPositions(grid, size.width // size.heads, architecture.rotary)
        self.class_token = _learned_tokens(int(architecture.class_token), size.width)
        self.registers = _learned_tokens(architecture.registers, size.width)

    def check(self, frames: Tensor, grid: TokenGrid | None = None) -> None:
        """Raise ValueError if the clips do not fit `grid`, are no frames, or if the batch is empty."""
        grid = grid or self.grid
        t, p, q = self.patch_embed.tubelet
        expected = (self.pixels.channels, grid.t * t, grid.h * p, grid.w * q)
        if frames.dim() != 5 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"expected clips of shape (B, {', '.join(map(str, expected))}), got {tuple(frames.shape)}"
            )
        if frames.dtype != torch.uint8 and not frames.is_floating_point():
            raise ValueError(f"expected clips of uint8, or normalized to float, got {frames.dtype}")
        if frames.size(0) == 0:
            raise ValueError("expected at least one clip, got an empty batch")

    def embed(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Embed the tokens `ids` (B, K) of clips (B, C, T, H, W) and add their positions: (B, K, D).

        Rotary positions are not added. Bytes are normalized after the tokens are gathered. The precision is
        that of the weights, or of autocast, whatever that of the clips is.
        """
        patches = gather_patches(frames, ids, self.patch_embed.tubelet)  # (B, K, C, t, p, q)
        patches = self.pixels.normalized(patches).to(self.patch_embed.dtype)
        return add_positions(self.patch_embed(patches), self.position, ids)

    def embed_class_token(self, batch: int) -> Tensor:
        """The class token of each clip, with its position if that is learned: (B, 1, D)."""
        assert self.class_token is not None
        token = self.class_token
        if isinstance(self.position, LearnedPositions):
            assert self.position.class_token is not None
            token = token + self.position.class_token
        return token.expand(batch, -1, -1)

    def prefix(self, batch: int) -> list[Tensor]:
        """The class token (B, 1, D) and the registers (B, R, D) in front of the tokens of each clip."""
        parts = []
        if self.class_token is not None:
            parts.append(self.embed_class_token(batch))
        if self.registers is not None:
            parts.append(self.registers.expand(batch, -1, -1))
        return parts

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode only the tokens `ids` (B, K) of clips (B, C, T, H, W): (B, K, D)."""
        x, last = self.embed(frames, ids), None
        rotary = self.position if isinstance(self.position, RotaryPositions) else self.rotary
        rotation = None if rotary is None else rotary(ids)
        prefix = self.prefix(x.size(0))
        if prefix:
            last = x.size(1)  # the outputs of the learned tokens are not needed
            x = torch.cat([*prefix, x], dim=1)  # (B, P + K, D)
            rotation = None if rotation is None else rotation.after_prefix(x.size(1) - last)
        x = self.norm_before(x)
        x = run_blocks(self.blocks, x, checkpointing=self.checkpointing, last=last, rotation=rotation)
        return self.norm(x)
