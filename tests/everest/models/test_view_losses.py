"""Losses between views, against the same sums written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everest.models.view_model import contrast, spread


def sampled(*shape: int, seed: int = 0) -> Tensor:
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
    projections = sampled(4, views, 6)
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


@given(st.integers(2, 8), st.floats(0.01, 100))
def test_spread_is_0_for_one_direction_and_1_for_opposite_ones(count: int, scale: float):
    row = scale * torch.tensor([1.0, -2.0, 3.0])
    assert spread(row.repeat(count, 1)).item() == pytest.approx(0, abs=1e-3)
    assert spread(torch.stack([row, -row]).repeat(count, 1)).item() == pytest.approx(1, abs=1e-5)
