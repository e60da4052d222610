"""The ViT encoder that all methods share: tubelet embedding, positions, blocks.

B batch, C channels, T frames, H W pixels, N tokens, K selected tokens, L learned tokens in front of them,
D width, t p q a tubelet's frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from math import prod
from typing import Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.model_settings import ModelSettings
from everest.config.values import Count, Epsilon, SmallCount, settings
from everest.methods.grid import TokenGrid, gather_patches
from everest.models.block import NORM_EPS, Block, Blocks
from everest.models.positions import (
    INTERPOLATED,
    FixedPositions,
    LearnedPositions,
    RotaryPositions,
    Rotation,
    TokenPositions,
    add_positions,
    learned_vectors,
    rotation_of,
)
from everest.system.compute import computes_bf16
from everest.video.pixels import IMAGENET, PixelStatistics

DIFFERENCE_SCALE: Final = 2.0  # heuristic: differences of frames are smaller than normalized pixels
# EVEREST Table 15: the factor by which each convolution after the first reduces rows and columns.
LATER_STRIDES: Final[dict[int, tuple[int, ...]]] = {1: (), 2: (4,), 3: (2, 2)}


def init_linear_layers(*modules: nn.Module, init: Callable[[Tensor], Tensor]) -> None:
    """Apply `init` to the weight of every Linear inside the modules, and set the biases to zero."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def require_clips(frames: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError if `frames` are not clips of a shape (C, T, H, W), or if the batch is empty."""
    is_clip = frames.dtype == torch.uint8 or frames.is_floating_point()
    if not is_clip or frames.dim() != 5 or tuple(frames.shape[1:]) != shape or frames.size(0) == 0:
        raise ValueError(
            f"expected clips of shape (B, {', '.join(map(str, shape))}), B at least 1, of uint8 or "
            f"normalized to float; got {frames.dtype} {tuple(frames.shape)}"
        )


@settings
class Norms:
    """The LayerNorms of a model. The defaults are the values of everest and of the official code."""

    after_encoder: bool = True  # pretrain, encoder; models of transformers may have none
    eps: Epsilon = NORM_EPS
    last_eps: Epsilon = NORM_EPS  # of the decoder's norm and of the norm after averaging


@settings
class Architecture:
    """The settings that models of every kind share: the encoder, and the clips that it takes."""

    frames: Count
    size: tuple[SmallCount, SmallCount]  # height, width
    model: ModelSettings
    checkpointing: bool = False  # recompute each block in the backward pass
    norms: Norms = field(default_factory=Norms)  # imported models may have other values
    # Time indices, rows and columns that interpolated positions were computed for.
    position_grid: tuple[Count, Count, Count] | None = None
    pixels: PixelStatistics = IMAGENET  # channels, mean and std of the clips

    @property
    def grid(self) -> TokenGrid:
        """The tokens of a clip."""
        return TokenGrid.of_clip(frames=self.frames, size=self.size, tubelet=self.model.tubelet)

    @property
    def trained_grid(self) -> TokenGrid:
        """The tokens that the positions were computed for."""
        if self.position_grid is None:
            return self.grid
        t, h, w = self.position_grid
        return TokenGrid(t=t, h=h, w=w)

    def with_positions_of(self, grid: TokenGrid) -> Self:
        """The same architecture, with interpolated positions computed for `grid`."""
        is_interpolated = self.model.positions.startswith(INTERPOLATED)
        return replace(self, position_grid=(grid.t, grid.h, grid.w) if is_interpolated else None)

    def make_positions(self, width: int, num_heads: int, *, class_token: bool = False) -> TokenPositions:
        """Make the positions of the encoder or the decoder, if learned also for a class token."""
        positions, grid = self.model.positions, self.grid
        if positions == "rotary":
            return RotaryPositions(grid, width // num_heads)
        if positions == "learned-separable":
            return LearnedPositions(grid, width, class_token=class_token)
        return FixedPositions(positions, self.trained_grid, grid, width)


class TubeletEmbedding(nn.Module):
    """A linear map of a tubelet's pixels (EVEREST §4.1): one convolution, or several (Table 15).

    `proj` is the Conv3d of the official code, with its weight and initialization. Applied to patches it
    is a matrix product, so any subset of the tokens can be embedded. Several convolutions are a linear map as
    well, because there is no activation between them.

    Args:
        pixels: of the clips: their number of channels, and how bytes are normalized.
    """

    def __init__(
        self,
        width: int,
        tubelet: tuple[int, int, int],
        *,
        layers: int = 1,
        pixels: PixelStatistics = IMAGENET,
    ) -> None:
        super().__init__()
        self.tubelet = tubelet
        self.pixels = pixels
        t, p, q = tubelet
        strides = LATER_STRIDES[layers]
        # Kernels equal strides, and together cover one tubelet.
        kernels = [(t, p // prod(strides), q // prod(strides)), *((1, stride, stride) for stride in strides)]
        channels = [pixels.channels, *(width for _ in strides)]
        convs = [
            nn.Conv3d(inputs, width, kernel_size=kernel, stride=kernel)
            for inputs, kernel in zip(channels, kernels, strict=True)
        ]
        self.proj = convs[0] if layers == 1 else nn.Sequential(*convs)

    def forward(self, patches: Tensor, *, biased: bool = True) -> Tensor:
        """Embed patches (B, K, C, t, p, q) in their precision: (B, K, D).

        Args:
            biased: False to embed the difference of two patches, in which the bias cancels.
        """
        if isinstance(self.proj, nn.Conv3d):
            weight, bias = _cast_like(patches, self.proj, biased=biased)
            return F.linear(patches.flatten(2), weight.flatten(1), bias)
        x = patches.flatten(0, 1)  # (B * K, C, t, p, q)
        for conv in self.proj:
            assert isinstance(conv, nn.Conv3d)
            x = F.conv3d(x, *_cast_like(patches, conv, biased=biased), conv.stride)
        return x.flatten(1).unflatten(0, patches.shape[:2])  # (B, K, D)

    def of_byte_changes(self, change: Tensor) -> Tensor:
        """Embed differences of bytes as if they were normalized, without gradients: (B, K, D) float32.

        On a GPU with units for bfloat16 it is a product in bfloat16 with sums in float32. The differences are
        exact in it, and the weight is split into two parts, which together keep 16 of its bits.

        Args:
            change: (B, K, C, t, p, q), integers from -255 to 255.
        """
        if not isinstance(self.proj, nn.Conv3d):
            return self(self.pixels.byte_changes_weight(change.float()), biased=False)
        weight = self.proj.weight.detach().float()  # (D, C, t, p, q)
        weight = self.pixels.byte_changes_weight(weight).flatten(1)  # (D, C*t*p*q)
        if not computes_bf16(change.device):
            return F.linear(change.flatten(2).float(), weight)
        flat = change.flatten(2).flatten(0, 1)  # (B * K, C*t*p*q)
        high, low = split_bfloat16(weight)
        embedded = torch.mm(flat, high.T, out_dtype=torch.float32)  # (B * K, D)
        embedded = embedded + torch.mm(flat, low.T, out_dtype=torch.float32)
        return embedded.unflatten(0, change.shape[:2])


def _cast_like(patches: Tensor, conv: nn.Conv3d, *, biased: bool) -> tuple[Tensor, Tensor | None]:
    """Cast weight and bias to the precision of the patches: importance is always computed in float32."""
    bias = conv.bias if biased else None
    return conv.weight.to(patches.dtype), None if bias is None else bias.to(patches.dtype)


def split_bfloat16(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors (the shape of the weight) whose sum has 16 bits of the weight, a float32.

    The first is rounded by its bits: torch.compile leaves out a cast to bfloat16 and back, and then
    the second would be zero.
    """
    high = ((weight.view(torch.int32) + 2**15) & -(2**16)).view(torch.float32)
    return high.bfloat16(), (weight - high).bfloat16()


class Encoder(nn.Module):
    """The transformer: embeds the selected tokens, adds their positions, runs the blocks.

    Args:
        final_norm: LayerNorm after the last block (pre-training); the classifier norms the mean instead.
        drop_path: the rate of stochastic depth (Huang et al. 2016) of the last block; the first has none.
    """

    def __init__(self, architecture: Architecture, *, final_norm: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        model, grid, norms = architecture.model, architecture.grid, architecture.norms
        size = model.backbone_size
        self.grid = grid
        self.num_frames = grid.t * model.tubelet[0]  # T
        self.width = size.width
        self.num_heads = size.heads
        self.by_time_index = model.attention == "slice" and grid.t > 1  # else both are the same
        self.pixels = architecture.pixels
        self.patch_embed = TubeletEmbedding(
            size.width, model.tubelet, layers=model.embedding_layers, pixels=self.pixels
        )
        block = partial(
            Block,
            size.width,
            size.heads,
            mlp_width=size.mlp_width,
            rotary=model.rotary != "none" or model.positions == "rotary",
            mlp=model.gelu if model.mlp == "plain" else model.mlp,
            eps=norms.eps,
        )
        rates = torch.linspace(0, drop_path, size.depth, device="cpu").tolist()
        self.blocks = Blocks(map(block, rates), checkpointing=architecture.checkpointing)
        norm = partial(nn.LayerNorm, size.width, eps=norms.eps)
        self.norm_before = norm() if model.norm_before else nn.Identity()
        self.norm = norm() if final_norm and norms.after_encoder else nn.Identity()
        self.position = architecture.make_positions(size.width, size.heads, class_token=model.class_token)
        self.rotary = None  # rotates queries and keys in addition to `position`, as in image models
        if model.rotary != "none":
            self.rotary = RotaryPositions(grid, size.width // size.heads, model.rotary)
        # The class token attends with the others in every block and is left out of the output, as in ST-MAE,
        # so that features are computed from a clip's tokens. Registers have no position (Darcet et al. 2024).
        self.class_token = learned_vectors(1, size.width) if model.class_token else None
        self.registers = learned_vectors(model.registers, size.width) if model.registers else None

    @property
    def sees_frames_alone(self) -> bool:
        """Whether tokens depend on their own frame only, wherever in the clip it is, as in image models."""
        if (
            not self.by_time_index
            or self.patch_embed.tubelet[0] > 1
            or isinstance(self.position, RotaryPositions)
        ):
            return False
        ids = torch.arange(self.grid.num_tokens, device=next(self.parameters()).device)
        positions = self.position(ids[None]).unflatten(1, (self.grid.t, -1))  # (1, t, P, D)
        return bool((positions == positions[:, :1]).all())

    def check(self, frames: Tensor, grid: TokenGrid | None = None) -> None:
        """Raise ValueError if `frames` are not clips of `grid`, or if the batch is empty."""
        grid = grid or self.grid
        t, p, q = self.patch_embed.tubelet
        require_clips(frames, (self.pixels.channels, grid.t * t, grid.h * p, grid.w * q))

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Encode only the tokens `ids` (B, K) of clips (B, C, T, H, W), bytes or normalized: (B, K, D).

        Computes in the precision of the weights, or of autocast, whatever the precision of the clips. With
        attention inside each time index, a clip may also have the frames of one alone (`sees_frames_alone`).
        """
        x = gather_patches(frames, ids, self.patch_embed.tubelet)  # (B, K, C, t, p, q)
        dtype = next(self.patch_embed.parameters()).dtype
        x = self.patch_embed(self.pixels.normalized(x).to(dtype))  # only the selected tokens
        x = add_positions(x, self.position, ids)  # (B, K, D)
        rotation = rotation_of(self.position if self.rotary is None else self.rotary, ids)
        if self.by_time_index and frames.size(2) > self.patch_embed.tubelet[0]:
            x = self._run_blocks_per_time_index(x, rotation, ids)
        else:
            x = self._run_blocks(x, self._learned_tokens(), rotation)
        return self.norm(x)  # (B, K, D)

    def _learned_tokens(self) -> Tensor | None:
        """The class token and the registers (1, L, D) of a clip, or of each time index with `slice`."""
        class_token = self.class_token  # (1, 1, D)
        if class_token is not None and isinstance(self.position, LearnedPositions):
            assert self.position.class_token is not None
            class_token = class_token + self.position.class_token
        learned = [tokens for tokens in (class_token, self.registers) if tokens is not None]
        return torch.cat(learned, dim=1) if learned else None

    def _run_blocks(
        self, x: Tensor, learned: Tensor | None, rotation: Rotation | None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the blocks on the learned tokens (1, L, D) and x (B, K, D), whose outputs are returned."""
        num_outputs = None
        if learned is not None:
            num_outputs = x.size(1)
            x = torch.cat([learned.expand(x.size(0), -1, -1), x], dim=1)  # (B, L + K, D)
            if rotation is not None:  # learned tokens are not rotated
                front = (0, 0, learned.size(1), 0)
                rotation = Rotation(F.pad(rotation.cos, front, value=1.0), F.pad(rotation.sin, front))
        return self.blocks(self.norm_before(x), num_outputs=num_outputs, rotation=rotation, mask=mask)

    def _run_blocks_per_time_index(self, x: Tensor, rotation: Rotation | None, ids: Tensor) -> Tensor:
        """Run the blocks on tokens (B, K, D) that attend only to tokens of their time index: (B, K, D)."""
        learned, t, num_positions = self._learned_tokens(), self.grid.t, self.grid.num_positions
        # With all tokens, each time index can be a clip of its own: a t-th of the products, and no mask. Not
        # in training, where the time indices of a clip share its stochastic depth.
        if ids.size(1) == self.grid.num_tokens and not self.training:
            x = x.unflatten(1, (t, num_positions)).flatten(0, 1)  # (B * t, P, D)
            if rotation is not None:  # (B, 1, N, E) to (B * t, 1, P, E)
                parts = (each.unflatten(2, (t, num_positions)).flatten(0, 2) for each in rotation)
                rotation = Rotation(*(part[:, None] for part in parts))
            return self._run_blocks(x, learned, rotation).unflatten(0, (-1, t)).flatten(1, 2)
        time_indices = ids // num_positions  # (B, K)
        if learned is not None:  # for every time index
            learned_time_indices = torch.arange(t, device=ids.device).repeat_interleave(learned.size(1))
            learned_time_indices = learned_time_indices.expand(ids.size(0), -1)
            time_indices = torch.cat([learned_time_indices, time_indices], dim=1)  # (B, t * L + K)
            learned = learned.repeat(1, t, 1)  # (1, t * L, D)
        return self._run_blocks(
            x, learned, rotation, time_indices[:, None, :, None] == time_indices[:, None, None, :]
        )


def frame_differences(frames: Tensor, pixels: PixelStatistics) -> Tensor:
    """Map clips (B, C, T, H, W), bytes or normalized, to twice the change of each frame since the one before.

    The first frame takes the change of the second. Still pixels are exactly zero. Our choice: a network that
    is trained on few clips need not learn what moves.
    """
    if frames.size(2) < 2:
        raise ValueError("frame differences need clips of at least two frames")
    change = DIFFERENCE_SCALE * pixels.normalized(frames).diff(dim=2)  # (B, C, T - 1, H, W)
    return torch.cat([change[:, :, :1], change], dim=2)


def with_tubelet_frames(tensors: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """Change the kernel of the embedding, among the weights of a model, to `frames` frames.

    On a clip of one repeated frame the tokens stay equal: a longer kernel repeats the frames of the old one
    (inflation, Carreira and Zisserman 2017), a shorter one sums them. One must divide the other.
    """
    changed = dict(tensors)
    # The first kernels of an embedding with one convolution and with several.
    kernels = {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.0.weight"}
    for name in kernels & tensors.keys():
        kernel = tensors[name]  # (D, C, t, p, q)
        if frames % kernel.size(2):
            changed[name] = kernel.unflatten(2, (frames, -1)).sum(dim=3)
        else:
            factor = frames // kernel.size(2)
            changed[name] = kernel.repeat_interleave(factor, dim=2) / factor
    return changed
