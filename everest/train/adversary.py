"""The adversary of a tokenizer: a discriminator that learns to tell rebuilt clips from real ones, beside it.

After MAGVIT's public code (Yu et al. 2023): the non-saturating loss, R1 on the real clips of every pass
(Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018), and Adam.

B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.train.optim import make_optimizer, parameter_groups

START: Final = 0.2  # ours: of the steps; before them the tokenizer learns to rebuild at all
BETAS: Final = (0.0, 0.99)  # MAGVIT


def first_step(steps: int) -> int:
    """From 0: where the adversary begins in a run of so many steps."""
    return int(START * steps)


class DiscriminatorLosses(NamedTuple):
    """Scalars of one pass."""

    total: Tensor  # what the discriminator learns from
    logistic: Tensor  # low where real and rebuilt clips are told apart
    r1: Tensor  # without its weight


class Adversary:
    """A discriminator, (B, 3, T, H, W) to (B,), and its optimiser.

    All is computed in float32, whatever `train.precision` is: R1 learns from second derivatives.

    Args:
        r1_weight: of the penalty.
        lr_scale: its learning rate over the tokenizer's, in every step.
    """

    def __init__(self, discriminator: nn.Module, *, r1_weight: float, lr_scale: float = 1.0) -> None:
        self.discriminator = discriminator
        self._r1_weight = r1_weight
        groups = parameter_groups(discriminator.named_parameters(), depth=0, weight_decay=0.0)
        for group in groups:
            group["lr_scale"] = lr_scale
        self.optimizer = make_optimizer(groups, betas=BETAS)

    def generator_loss(self, rebuilt: Tensor) -> Tensor:
        """Scalar: low where rebuilt clips pass for real ones. The discriminator gets no gradient from it."""
        with _frozen(self.discriminator), _float32(rebuilt):
            return F.softplus(-self.discriminator(rebuilt.float())).mean()

    def discriminator_losses(self, real: Tensor, rebuilt: Tensor) -> DiscriminatorLosses:
        """What the discriminator learns from; neither kind of clips gets a gradient."""
        real = real.detach().float().requires_grad_()
        with _float32(real):
            on_real = self.discriminator(real)  # (B,)
            on_rebuilt = self.discriminator(rebuilt.detach().float())
            logistic = F.softplus(-on_real).mean() + F.softplus(on_rebuilt).mean()
            r1 = r1_penalty(on_real, real, learns=self._r1_weight > 0)
            return DiscriminatorLosses(logistic + self._r1_weight * r1, logistic, r1)


def r1_penalty(logits: Tensor, real: Tensor, *, learns: bool = True) -> Tensor:
    """Scalar: the squared norm of the gradient of a clip's logit, mean over the clips.

    Args:
        logits: (B,) of the clips `real`, which need a gradient.
        learns: whether the penalty itself is to have one.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=learns, retain_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def _float32(clips: Tensor) -> torch.autocast:
    """Without autocast, which reaches the operations of a gradient's own graph, too."""
    return torch.autocast(clips.device.type, enabled=False)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Without gradients for the weights of `module` in what is computed inside the block."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
