"""The adversary of a tokenizer: a discriminator that learns to distinguish rebuilt clips from real ones.

After MAGVIT's public code (Yu et al. 2023): the non-saturating loss, R1 on the real clips of every pass
(Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018), and Adam.

B batch, T frames, H W pixels.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.train.network import Network
from everest.train.optim import make_optimizer

START: Final = 0.2  # our choice: of the steps; before them the tokenizer learns to rebuild at all
BETAS: Final = (0.0, 0.99)  # MAGVIT


def first_step(steps: int) -> int:
    """Returns the step, from 0, at which the adversary starts in a run of `steps` steps."""
    return int(START * steps)


class DiscriminatorLosses(NamedTuple):
    """The scalars of one pass."""

    total: Tensor  # the loss of the discriminator
    logistic: Tensor  # low if it distinguishes real and rebuilt clips
    r1: Tensor  # without its weight


class Adversary:
    """A discriminator, (B, 3, T, H, W) to (B,), and its optimizer.

    Everything is computed in float32, whatever `train.precision` is: R1 learns from second derivatives.

    Args:
        r1_weight: of the penalty.
        lr_scale: its learning rate over the tokenizer's, in every step.
    """

    def __init__(self, discriminator: nn.Module, *, r1_weight: float, lr_scale: float = 1.0) -> None:
        self.discriminator = discriminator
        self._r1_weight = r1_weight
        group = {"params": list(discriminator.parameters()), "weight_decay": 0.0, "lr_scale": lr_scale}
        self.network = Network(
            module=discriminator,
            optimizer=make_optimizer([group], betas=BETAS),
            name="adversary",
            grad_norm="discriminator_grad_norm",
        )

    def generator_loss(self, rebuilt: Tensor) -> Tensor:
        """Scalar: low if rebuilt clips pass for real ones. The discriminator gets no gradient from it."""
        self.discriminator.requires_grad_(False)
        try:
            with torch.autocast(rebuilt.device.type, enabled=False):
                return F.softplus(-self.discriminator(rebuilt.float())).mean()
        finally:
            self.discriminator.requires_grad_(True)

    def discriminator_losses(self, real: Tensor, rebuilt: Tensor) -> DiscriminatorLosses:
        """The losses of the discriminator; neither real nor rebuilt clips get a gradient."""
        real = real.detach().float().requires_grad_()
        # Autocast would also reach the operations of a gradient's own graph.
        with torch.autocast(real.device.type, enabled=False):
            on_real = self.discriminator(real)  # (B,)
            on_rebuilt = self.discriminator(rebuilt.detach().float())
            logistic = F.softplus(-on_real).mean() + F.softplus(on_rebuilt).mean()
            r1 = r1_penalty(on_real, real, learns=self._r1_weight > 0)
            return DiscriminatorLosses(logistic + self._r1_weight * r1, logistic, r1)


def r1_penalty(logits: Tensor, real: Tensor, *, learns: bool = True) -> Tensor:
    """Scalar: the squared norm of the gradient of a clip's logit, averaged over the clips.

    Args:
        logits: (B,) of the clips `real`, which need a gradient.
        learns: whether the penalty itself needs a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=learns, retain_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
