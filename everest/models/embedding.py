"""The tubelet embedding, from pixels to tokens.

B batch, K tokens, C channels, t p q a tubelet's frames, rows and columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.methods.importance import TokenScores
from everest.system.compute import computes_bf16
from everest.video.pixels import IMAGENET, PixelStatistics

SCALE: Final = 2.0  # heuristic: neighboring frames differ less than frames do


def frame_differences(frames: Tensor, pixels: PixelStatistics) -> Tensor:
    """Map clips (B, C, T, H, W), bytes or normalized, to twice the change of each frame since the one before.

    The first frame takes the change of the second. Still pixels are exactly zero. Our choice: a network of
    few clips has to find what moves by itself otherwise.
    """
    if frames.size(2) < 2:
        raise ValueError("frame differences need clips of at least two frames")
    change = SCALE * pixels.normalized(frames).diff(dim=2)  # (B, C, T - 1, H, W)
    return torch.cat([change[:, :, :1], change], dim=2)


# EVEREST Table 15: the factor by which each convolution after the first reduces rows and columns.
LATER_STEPS: Final[dict[int, tuple[int, ...]]] = {1: (), 2: (4,), 3: (2, 2)}


class TubeletEmbedding(nn.Module):
    """A linear map of a tubelet's pixels (EVEREST §4.1): one convolution, or several (Table 15).

    `proj` is the Conv3d of the released programs, with its weight and initialization. Applied to patches it
    is a matrix product, so any subset of the tokens can be embedded. Several convolutions are a linear map as
    well, because there is no activation between them.

    Args:
        pixels: of the clips: their number of channels, and how bytes are normalized.
    """

    scores: TokenScores | None = None  # of the tokenizer of an autoencoder

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
        steps = LATER_STEPS[layers]
        # Kernels equal strides, and together cover one tubelet.
        kernels = [(t, p // prod(steps), q // prod(steps)), *((1, step, step) for step in steps)]
        channels = [pixels.channels, *(width for _ in steps)]
        convs = [
            nn.Conv3d(inputs, width, kernel_size=kernel, stride=kernel)
            for inputs, kernel in zip(channels, kernels, strict=True)
        ]
        self.proj = convs[0] if layers == 1 else nn.Sequential(*convs)

    def forward(self, patches: Tensor, *, biased: bool = True) -> Tensor:
        """Embed patches (B, K, C, t, p, q) in their precision: (B, K, D).

        Args:
            biased: False for the difference of two embeddings from that of their patches: the bias cancels.
        """
        if isinstance(self.proj, nn.Conv3d):
            weight, bias = _like(patches, self.proj, biased=biased)
            return F.linear(patches.flatten(2), weight.flatten(1), bias)
        x = patches.flatten(0, 1)  # (B * K, C, t, p, q)
        for conv in self.proj:
            assert isinstance(conv, nn.Conv3d)
            x = F.conv3d(x, *_like(patches, conv, biased=biased), conv.stride)
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
        rows = change.flatten(2).flatten(0, 1)  # (B * K, C*t*p*q)
        high, low = in_two_parts(weight)
        embedded = torch.mm(rows, high.T, out_dtype=torch.float32)  # (B * K, D)
        embedded = embedded + torch.mm(rows, low.T, out_dtype=torch.float32)
        return embedded.unflatten(0, change.shape[:2])


def _like(patches: Tensor, conv: nn.Conv3d, *, biased: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the precision of the patches: importance is measured in float32 by any weights."""
    bias = conv.bias if biased else None
    return conv.weight.to(patches.dtype), None if bias is None else bias.to(patches.dtype)


def in_two_parts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum has 16 bits of the weight, which must be float32.

    The first is rounded by its bits: torch.compile leaves out a cast to bfloat16 and back, and then
    the second would be zero.
    """
    high = ((weight.view(torch.int32) + 2**15) & -(2**16)).view(torch.float32)
    return high.bfloat16(), (weight - high).bfloat16()


def with_tubelet_frames(tensors: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """Weights of a model with the kernel of its embedding changed to `frames` frames.

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
