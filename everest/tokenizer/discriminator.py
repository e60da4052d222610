"""The discriminator between rebuilt and real clips: a 3-D StyleGAN discriminator, like MAGVIT's.

Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020; the layers and their order follow
MAGVIT's public code. Our choices: the strided first convolution, which makes it as small as its tokenizer,
the widths, the size at which halving ends, and StyleGAN's blur instead of that code's plain means.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.sizes import TokenizerConfig, discriminator_halvings

SLOPE: Final = 0.2  # of the leaky ReLU, below 0: MAGVIT
MOST_WIDTH: Final = 4  # our choice: times the tokenizer's first width; channels double up to it
BLUR: Final = (1, 3, 3, 1)  # StyleGAN


class BlurredHalving(nn.Module):
    """Blurs and keeps every second value along height and width, with `time` also along time."""

    kernel: Tensor  # (1, 1, kt, 4, 4), its sum 1

    def __init__(self, *, time: bool) -> None:
        super().__init__()
        taps = torch.tensor(BLUR) / sum(BLUR)
        over_time = taps if time else torch.ones(1)
        kernel = torch.einsum("t,h,w->thw", over_time, taps, taps)
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.stride = (2 if time else 1, 2, 2)
        self.padding = (1 if time else 0, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.size(1), -1, -1, -1, -1)
        return F.conv3d(x, kernel, stride=self.stride, padding=self.padding, groups=x.size(1))


class DiscriminatorBlock(nn.Module):
    """Two convolutions with a halving between them, and a shortcut that is halved as well."""

    def __init__(self, channels: int, out_channels: int, *, time: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(SLOPE),
            BlurredHalving(time=time),
            nn.Conv3d(channels, out_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        shortcut = nn.Conv3d(channels, out_channels, kernel_size=1, bias=False)
        self.shortcut = nn.Sequential(BlurredHalving(time=time), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.layers(x)) / sqrt(2)  # keeps the variance


class Discriminator(nn.Module):
    """Maps clips (B, 3, T, H, W) in [0, 1] to logits (B,), which are higher for clips taken as real.

    Args:
        config: of the tokenizer that rebuilds the clips.
        frames: T.
        size: height and width of the clips before the tokenizer scales them.
    """

    def __init__(self, config: TokenizerConfig, *, frames: int, size: tuple[int, int]) -> None:
        super().__init__()
        halvings = discriminator_halvings(config, size)
        if not halvings:
            raise ValueError(f"clips of {size} pixels are too small for a discriminator")
        grid = config.stem_grid(frames, size)
        time, space = config.stem
        # The windows overlap by 2 pixels, so that the seams of a decoder that unpatchifies are visible.
        kernel = (time + 2, space + 2, space + 2)
        width = config.channels
        stem = nn.Conv3d(3, width, kernel_size=kernel, stride=(time, space, space), padding=1)
        layers: list[nn.Module] = [stem, nn.LeakyReLU(SLOPE)]
        for _ in range(halvings):
            wider = min(2 * width, MOST_WIDTH * config.channels)
            halves_time = grid[0] > 1
            layers.append(DiscriminatorBlock(width, wider, time=halves_time))
            grid = (grid[0] // 2 if halves_time else 1, grid[1] // 2, grid[2] // 2)
            width = wider
        layers += [nn.Conv3d(width, width, kernel_size=3, padding=1), nn.LeakyReLU(SLOPE), nn.Flatten()]
        layers += [nn.Linear(width * prod(grid), width), nn.LeakyReLU(SLOPE), nn.Linear(width, 1)]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():  # initial weights as MAGVIT's
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips)[:, 0]
