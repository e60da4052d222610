"""The loss of a tokenizer: the error of reconstructed pixels, and two terms of MAGVIT with weights above 0.

As in MAGVIT's public code (Yu et al. 2023), these are an adversarial and a perceptual term. The adversary is
a discriminator that learns to distinguish reconstructed from real clips, with the non-saturating loss, R1 on
the real clips of every micro-batch (Mescheder et al., Which Training Methods for GANs do actually Converge?,
2018), and Adam. The perceptual term is the mean squared difference between the logits of an ImageNet network
on reconstructed
and on real frames: a ResNet-50, with frames in the size that it was trained on.

The discriminator is StyleGAN's (Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020)
in 3-D, with the layers of MAGVIT's public code in their order. Our choices: the strided first convolution,
which makes the discriminator as small as its tokenizer, the widths, the size at which halving ends, and
StyleGAN's blur instead of the plain means in MAGVIT's code.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod, sqrt
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.settings import Recipe
from everest.config.tokenizer_settings import TokenizerConfig, TokenizerLossSettings
from everest.data.randomness import Purpose, seed_at
from everest.errors import RecipeError
from everest.system.compute import peak_bytes
from everest.tokenizer.adaptive_tokenizer import TokenizerReconstruction
from everest.tokenizer.spec import TokenizerSpec, tokenizer_settings
from everest.video.pixels import IMAGENET

MIN_SIDE: Final = 4  # heuristic: minimum height and width, in positions, of a discriminator's last layer
ADVERSARY_START: Final = 0.2  # heuristic: fraction of the steps in which it first learns to reconstruct
ADVERSARY_BETAS: Final = (0.0, 0.99)  # MAGVIT
ADVERSARY_LR: Final = 1e-4  # MAGVIT; the peak, in the tokenizer's schedule
R1_WEIGHT: Final = 10.0  # MAGVIT; of the penalty in the discriminator's loss
LEAKY_SLOPE: Final = 0.2  # slope of the leaky ReLU below 0: MAGVIT
MAX_WIDTH: Final = 4  # heuristic: maximum width as a multiple of the tokenizer's first width
BLUR_KERNEL: Final = (1, 3, 3, 1)  # StyleGAN

IMAGE_SIDE: Final = 224  # pixels
# Heuristic: frames sampled from a clip in every micro-batch. On average, their mean is that of all frames;
# all sixteen frames would take twice the memory of a micro-batch of the `lite` tokenizer, and a third of its
# time.
PERCEPTUAL_FRAMES: Final = 4
# Clips kept in memory in a micro-batch: 1 for the tokenizer's loss, 1 reconstructed clip, and 3 for the real
# clip (R1).
DISCRIMINATOR_PASSES: Final = 5


class BlurredHalving(nn.Module):
    """Blurs, then keeps every second value along height and width, and along time if `time`."""

    kernel: Tensor  # (1, 1, kt, 4, 4) with sum 1

    def __init__(self, *, time: bool) -> None:
        super().__init__()
        taps = torch.tensor(BLUR_KERNEL) / sum(BLUR_KERNEL)
        over_time = taps if time else torch.ones(1)
        kernel = torch.einsum("t,h,w->thw", over_time, taps, taps)
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.stride = (2 if time else 1, 2, 2)
        self.padding = (1 if time else 0, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.size(1), -1, -1, -1, -1)
        return F.conv3d(x, kernel, stride=self.stride, padding=self.padding, groups=x.size(1))


class DiscriminatorBlock(nn.Module):
    """Two convolutions with a halving in between, and a shortcut that is also halved."""

    def __init__(self, channels: int, out_channels: int, *, time: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            BlurredHalving(time=time),
            nn.Conv3d(channels, out_channels, kernel_size=3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        shortcut = nn.Conv3d(channels, out_channels, kernel_size=1, bias=False)
        self.shortcut = nn.Sequential(BlurredHalving(time=time), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.layers(x)) / sqrt(2)  # keeps the variance


class Discriminator(nn.Module):
    """Maps clips (B, 3, T, H, W) in [0, 1] to logits (B,), which are higher for clips taken as real.

    Args:
        config: settings of the tokenizer that reconstructs the clips.
        frames: number of frames T.
        size: height and width of the clips before the tokenizer scales them.
    """

    def __init__(self, config: TokenizerConfig, *, frames: int, size: tuple[int, int]) -> None:
        super().__init__()
        grid = config.stem_grid(frames, size)  # frames, rows and columns after the tokenizer's stem
        side, halvings = min(grid[1:]), 0
        while side // 2 >= MIN_SIDE:
            side, halvings = side // 2, halvings + 1
        if not halvings:
            raise RecipeError(
                f"tokenizer.loss.gan: clips of {size[0]} x {size[1]} pixels are too small for the "
                "discriminator, which halves them; set it to 0, or raise data.size"
            )
        time, space = config.stem
        # The chunks overlap by 2 pixels, so that the seams of a decoder that unpatchifies are visible.
        kernel = (time + 2, space + 2, space + 2)
        width = config.channels
        stem = nn.Conv3d(3, width, kernel_size=kernel, stride=(time, space, space), padding=1)
        layers: list[nn.Module] = [stem, nn.LeakyReLU(LEAKY_SLOPE)]
        for _ in range(halvings):
            wider = min(2 * width, MAX_WIDTH * config.channels)
            halves_time = grid[0] > 1
            layers.append(DiscriminatorBlock(width, wider, time=halves_time))
            grid = (grid[0] // 2 if halves_time else 1, grid[1] // 2, grid[2] // 2)
            width = wider
        layers += [nn.Conv3d(width, width, kernel_size=3, padding=1), nn.LeakyReLU(LEAKY_SLOPE), nn.Flatten()]
        layers += [nn.Linear(width * prod(grid), width), nn.LeakyReLU(LEAKY_SLOPE), nn.Linear(width, 1)]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():  # initial weights of MAGVIT
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips)[:, 0]


class DiscriminatorLosses(NamedTuple):
    """The scalar losses of the discriminator in one micro-batch."""

    total: Tensor  # the total loss of the discriminator
    logistic: Tensor  # low if the discriminator distinguishes real and reconstructed clips
    r1: Tensor  # the R1 penalty without its weight


class Adversary:
    """A discriminator, (B, 3, T, H, W) to (B,), and its parameter group.

    Everything is computed in float32, whatever `train.precision` is: R1 learns from second derivatives.

    Args:
        r1_weight: weight of the R1 penalty.
        lr_scale: ratio of the discriminator's learning rate to the tokenizer's, in every step.
    """

    def __init__(
        self, discriminator: nn.Module, *, r1_weight: float = R1_WEIGHT, lr_scale: float = 1.0
    ) -> None:
        self.discriminator = discriminator
        self._r1_weight = r1_weight
        self.group = {"params": list(discriminator.parameters()), "weight_decay": 0.0, "lr_scale": lr_scale}

    def generator_loss(self, reconstructed: Tensor) -> Tensor:
        """A scalar, low if reconstructed clips pass for real; the discriminator gets no gradient from it."""
        self.discriminator.requires_grad_(False)
        try:
            with torch.autocast(reconstructed.device.type, enabled=False):
                return F.softplus(-self.discriminator(reconstructed.float())).mean()
        finally:
            self.discriminator.requires_grad_(True)

    def discriminator_losses(self, real: Tensor, reconstructed: Tensor) -> DiscriminatorLosses:
        """Compute the losses of the discriminator; neither real nor reconstructed clips get a gradient."""
        real = real.detach().float().requires_grad_()
        # Autocast would also affect the operations in the graph of a gradient.
        with torch.autocast(real.device.type, enabled=False):
            on_real = self.discriminator(real)  # (B,)
            on_reconstructed = self.discriminator(reconstructed.detach().float())  # (B,)
            logistic = F.softplus(-on_real).mean() + F.softplus(on_reconstructed).mean()
            (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            r1 = gradient.square().flatten(1).sum(dim=1).mean()  # squared norm, averaged over the clips
            return DiscriminatorLosses(logistic + self._r1_weight * r1, logistic, r1)


def perceptual_distance(
    network: nn.Module, reconstructed: Tensor, real: Tensor, rng: np.random.Generator
) -> Tensor:
    """Return a float32 scalar: the distance of clips (B, 3, T, H, W) in [0, 1], on frames that `rng` draws.

    Args:
        network: a frozen network, from frames (N, 3, H, W) to logits.
    """
    number = min(PERCEPTUAL_FRAMES, real.size(2))
    ids = np.sort(rng.choice(real.size(2), size=number, replace=False))
    sampled = torch.from_numpy(ids).to(real.device)
    logits = []
    for clips in (reconstructed, real.detach()):
        frames = IMAGENET.normalize_unit_range(clips[:, :, sampled]).transpose(1, 2).flatten(0, 1)
        if frames.shape[2:] != (IMAGE_SIDE, IMAGE_SIDE):  # (N, 3, H, W)
            frames = F.interpolate(frames, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", antialias=True)
        logits.append(network(frames).float())
    return F.mse_loss(*logits)


def _bytes_of_micro_batch(network: nn.Module, shape: tuple[int, ...], bytes_per_value: int) -> int:
    """The bytes that a forward pass of an input takes, by a copy of the network on the meta device."""
    tensors = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()}
    copy = deepcopy(network, tensors | {id(b): b.to("meta") for b in network.buffers()})
    options = {"bytes_per_value": bytes_per_value, "with_grad": True}
    return peak_bytes(copy, lambda: copy(torch.empty(shape, requires_grad=True)), **options)


class TokenizerLosses(NamedTuple):
    """The scalar losses of one micro-batch."""

    tokenizer: Tensor
    discriminator: Tensor | None  # None: the adversary is not active
    parts: dict[str, Tensor]  # the terms without their weights; empty if there is only one term


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizerObjective:
    """The terms of the loss with their weights; a term with weight 0 is None."""

    weights: TokenizerLossSettings
    perceptual: nn.Module | None = None  # frozen network, see `perceptual_distance`
    adversary: Adversary | None = None

    def __call__(
        self, out: TokenizerReconstruction, *, adversarial: bool, rng: np.random.Generator
    ) -> TokenizerLosses:
        """Compute the losses of a micro-batch.

        Args:
            adversarial: whether the adversary is active in this step.
            rng: draws the frames for the perceptual term.
        """
        parts, loss = {"reconstruction": out.loss}, out.loss
        if self.perceptual is not None:
            parts["perceptual"] = perceptual_distance(self.perceptual, out.frames, out.original, rng)
            loss = loss + self.weights.perceptual * parts["perceptual"]
        if self.adversary is None or not adversarial:
            several = self.perceptual is not None or self.adversary is not None
            return TokenizerLosses(loss, None, parts if several else {})
        parts["generator"] = self.adversary.generator_loss(out.frames)
        total, parts["discriminator"], parts["r1"] = self.adversary.discriminator_losses(
            out.original, out.frames
        )
        return TokenizerLosses(loss + self.weights.gan * parts["generator"], total, parts)

    def bytes_per_clip(self, spec: TokenizerSpec, bytes_per_value: int) -> int:
        """The bytes of a clip in the networks of the terms, without those in the tokenizer: an estimate."""
        total = 0
        if self.adversary is not None:
            shape = (1, 3, spec.chunk, *spec.config.scaled(spec.size))
            total += DISCRIMINATOR_PASSES * _bytes_of_micro_batch(self.adversary.discriminator, shape, 4)
        if self.perceptual is not None:
            total += _bytes_of_micro_batch(
                self.perceptual, (PERCEPTUAL_FRAMES, 3, IMAGE_SIDE, IMAGE_SIDE), bytes_per_value
            )
        return total


def tokenizer_objective(
    recipe: Recipe, spec: TokenizerSpec, device: torch.device, *, load: Callable[[str | None], nn.Module]
) -> TokenizerObjective:
    """Build the terms of a recipe's loss on a device.

    Args:
        load: returns the perceptual network for `perceptual_weights`.
    """
    settings = tokenizer_settings(recipe)
    weights, perceptual, adversary = settings.loss, None, None
    with torch.random.fork_rng(devices=[]):
        if weights.perceptual:
            perceptual = load(weights.perceptual_weights).to(device).eval().requires_grad_(False)
        if weights.gan:
            torch.manual_seed(seed_at(recipe.train.seed, Purpose.DISCRIMINATOR))
            discriminator = Discriminator(spec.config, frames=spec.chunk, size=spec.size).to(device)
            adversary = Adversary(discriminator, lr_scale=ADVERSARY_LR / settings.lr)
    return TokenizerObjective(weights=weights, perceptual=perceptual, adversary=adversary)
