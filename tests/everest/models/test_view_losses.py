"""Losses between views, against the same sums written out in float64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everest.models.view_model import KNOTS, LAST_KNOT, contrast, invariance, sigreg, spread


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def written_out_contrast(projections: Tensor, videos: list[int], temperature: float) -> Tensor:
    count, views = projections.shape[:2]
    rows = [(m, v) for m in range(count) for v in range(views)]
    unit = {row: projections[row] / projections[row].norm() for row in rows}
    terms = []
    for anchor in rows:
        allowed = [row for row in rows if row[0] == anchor[0] or videos[row[0]] != videos[anchor[0]]]
        chances = {row: (unit[anchor] @ unit[row] / temperature).exp() for row in allowed if row != anchor}
        total = torch.stack(list(chances.values())).sum()
        own = [row for row in chances if row[0] == anchor[0]]
        terms += [-(chances[row] / total).log() for row in own]
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("views", "videos"), [(2, [0, 1, 2, 3]), (3, [0, 1, 0, 2]), (2, [5, 5, 5, 5])])
def test_contrast_is_infonce_in_value_and_gradient(views: int, videos: list[int]):
    projections = drawn(4, views, 6)
    loss, _ = contrast(projections, torch.tensor(videos), temperature=0.3)
    expected = written_out_contrast(projections, videos, 0.3)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    gradient, written_out = (torch.autograd.grad(value, projections)[0] for value in (loss, expected))
    assert torch.allclose(gradient, written_out, atol=1e-12)


def test_contrast_counts_views_that_find_their_video():
    apart = torch.eye(3).unsqueeze(1).repeat(1, 2, 1)  # (M, V, P): both views of a video are the same
    numbers = torch.arange(3)
    assert contrast(apart, numbers, temperature=0.1)[1] == 1
    exchanged = torch.stack([apart[:, 0], apart[:, 1].roll(1, dims=0)], dim=1)
    assert contrast(exchanged, numbers, temperature=0.1)[1] == 0


def written_out_sigreg(rows: Tensor, directions: Tensor) -> float:
    """By complex exponentials of single numbers."""
    knots = [-LAST_KNOT + 2 * LAST_KNOT * k / (KNOTS - 1) for k in range(KNOTS)]
    total = 0.0
    for direction in directions.T:
        heights = []
        for t in knots:
            along = [float(row @ direction) for row in rows]
            found = sum(cmath.exp(1j * t * value) for value in along) / len(along)
            normal = math.exp(-(t**2) / 2)
            heights.append(abs(found - normal) ** 2 * normal)
        step = knots[1] - knots[0]
        total += step * (sum(heights) - (heights[0] + heights[-1]) / 2)
    return len(rows) * total / directions.size(1)


def test_sigreg_is_the_statistic_of_epps_and_pulley_in_value_and_gradient():
    rows = drawn(7, 3)
    directions = torch.nn.functional.normalize(drawn(3, 4, seed=1).detach(), dim=0)
    # Its knots are of single precision, as in training.
    expected = written_out_sigreg(rows.detach(), directions)
    assert sigreg(rows, directions).item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: sigreg(x, directions), rows, atol=1e-5)


def test_sigreg_is_small_for_a_normal_distribution_only():
    directions = torch.nn.functional.normalize(drawn(8, 256, seed=1).detach(), dim=0)
    normal = drawn(2000, 8).detach()
    assert sigreg(normal, directions) < 2
    for other in (0 * normal, 2 * normal, normal.abs(), normal[:, :1].expand(-1, 8)):
        assert sigreg(other, directions) > 20


def test_invariance_is_the_mean_distance_to_the_mean_view():
    views = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert invariance(views).item() == pytest.approx((1 + 0 + 1 + 0 + 0 + 0 + 0 + 0) / 8)


@given(st.integers(2, 8), st.floats(0.01, 100))
def test_spread_is_0_for_one_direction_and_1_for_opposite_ones(count: int, scale: float):
    row = scale * torch.tensor([1.0, -2.0, 3.0])
    assert spread(row.repeat(count, 1)).item() == pytest.approx(0, abs=1e-3)
    assert spread(torch.stack([row, -row]).repeat(count, 1)).item() == pytest.approx(1, abs=1e-5)
