"""Losses between views of the same videos: contrast, and invariance with SIGReg.

M videos, V views of each, P channels of a projection, S directions, K knots.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS: Final = 256  # LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544), its listing of SIGReg
KNOTS: Final = 17  # the same: of the integral over t, from -5 to 5
LAST_KNOT: Final = 5.0


def contrast(projections: Tensor, videos: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE: each view has to find the other views of its video among all views (SimCLR, Chen et al. 2020).

    Views of the same video in other rows are ignored: they are neither positives nor negatives.

    Args:
        projections: (M, V, P) float32.
        videos: (M,) a number for each video.
    Returns:
        The loss, and the share of the views whose nearest other view is one of their video; scalars.
    """
    count, views = projections.shape[:2]
    rows = F.normalize(projections.flatten(0, 1), dim=1)  # (M * V, P)
    place = torch.arange(count, device=rows.device).repeat_interleave(views)  # (M * V,)
    number = videos.repeat_interleave(views)
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    positive = (place[:, None] == place[None]) & ~own  # (M * V, M * V)
    ignored = own | ((number[:, None] == number[None]) & ~positive)
    similarity = (rows @ rows.T / temperature).masked_fill(ignored, -torch.inf)
    log_chance = similarity.log_softmax(dim=1)
    found = log_chance.where(positive, 0.0)  # an index by `positive` would wait for the device
    loss = -found.sum() / (len(rows) * (views - 1))
    nearest = similarity.detach().argmax(dim=1, keepdim=True)
    return loss, positive.gather(1, nearest).float().mean()


def invariance(projections: Tensor) -> Tensor:
    """The mean squared distance of the views (M, V, P) to the mean view of their video, a scalar (LeJEPA)."""
    return (projections - projections.mean(dim=1, keepdim=True)).square().mean()


def sigreg(projections: Tensor, directions: Tensor) -> Tensor:
    """SIGReg: how far projections are from a normal distribution along random directions, a scalar.

    The statistic of Epps and Pulley: N times the squared distance of the characteristic functions, weighted
    by a Gaussian window, as an integral over t by the trapezoid rule (LeJEPA, section 4).

    Args:
        projections: (N, P) float32.
        directions: (P, S) of length 1.
    """
    t = torch.linspace(-LAST_KNOT, LAST_KNOT, KNOTS, device=projections.device)  # (K,)
    normal = torch.exp(-t.square() / 2)  # its characteristic function, and the window
    angles = (projections @ directions).unsqueeze(2) * t  # (N, S, K)
    real, imaginary = angles.cos().mean(dim=0), angles.sin().mean(dim=0)  # (S, K)
    distance = ((real - normal).square() + imaginary.square()) * normal
    return len(projections) * torch.trapezoid(distance, t, dim=1).mean()


def random_directions(channels: int, *, device: torch.device) -> Tensor:
    """(P, S) directions of length 1, from torch's default generator."""
    return F.normalize(torch.randn(channels, DIRECTIONS, device=device), dim=0)


def spread(projections: Tensor) -> Tensor:
    """The standard deviation of projections (N, P) of length 1, times the root of P; a scalar.

    1 if they point in all directions, 0 if all are the same: then the encoder has collapsed.
    """
    return deviation(F.normalize(projections, dim=1)) * projections.size(1) ** 0.5


def deviation(projections: Tensor) -> Tensor:
    """The root mean square of the standard deviations of projections (N, P), 1 for SIGReg's; a scalar."""
    return projections.var(dim=0, correction=0).mean().sqrt()
