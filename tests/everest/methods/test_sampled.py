"""Draws of tokens by a mixture of uniform and of their change."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from everest.methods.grid import TokenGrid
from everest.methods.importance import Embedding
from everest.methods.selection import RedundancyRobust, Sampled

GRID = TokenGrid(t=2, h=1, w=4)
CHANGE = torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0, 1.0, 4.0, 0.0])


def first_draws(uniform: float, importance: Tensor = CHANGE, *, rows: int = 40_000) -> Tensor:
    """The fraction (N,) of the rows in which each token is drawn first."""
    noise = torch.rand(rows, GRID.num_tokens, generator=torch.Generator().manual_seed(0))
    strategy = Sampled(keep_ratio=0.125, visible_ratio=None, uniform=uniform)
    chosen = strategy(GRID, importance=importance.expand(rows, -1), noise=noise)
    return torch.bincount(chosen.visible[:, 0], minlength=GRID.num_tokens) / rows


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1.0])
def test_a_token_is_drawn_with_the_probability_of_the_mixture(uniform: float):
    expected = uniform / GRID.num_tokens + (1 - uniform) * CHANGE / CHANGE.sum()
    assert first_draws(uniform).numpy() == pytest.approx(expected.numpy(), abs=0.01)


def test_distances_below_zero_count_from_the_stillest_token():
    assert torch.equal(first_draws(0.0, CHANGE - 3), first_draws(0.0, CHANGE))


def test_where_nothing_changes_all_tokens_are_drawn_alike():
    assert first_draws(0.0, torch.zeros(8)).numpy() == pytest.approx(1 / 8, abs=0.01)


def test_visible_tokens_are_drawn_first_and_the_others_are_predicted():
    noise = torch.rand(500, 8, generator=torch.Generator().manual_seed(1))
    rows = CHANGE.expand(500, -1)
    both = Sampled(keep_ratio=0.5, visible_ratio=0.25, uniform=0.0)(GRID, importance=rows, noise=noise)
    kept = Sampled(keep_ratio=0.5, visible_ratio=None, uniform=0.0)(GRID, importance=rows, noise=noise)
    assert both.visible.shape == both.predicted.shape == (500, 2)
    joined = torch.cat([both.visible, both.predicted], dim=1).sort(dim=1).values
    assert torch.equal(joined, kept.visible)
    assert set(kept.visible.flatten().tolist()) == {2, 3, 5, 6}  # those that change
    assert (kept.visible.diff(dim=1) > 0).all()
    assert (both.visible == 6).any(dim=1).float().mean() > 0.7


def test_uniform_draws_need_no_importance():
    noise = torch.rand(50, 8, generator=torch.Generator().manual_seed(2))
    strategy = Sampled(keep_ratio=0.5, visible_ratio=None, uniform=1.0)
    measured = strategy(GRID, importance=CHANGE.expand(50, -1), noise=noise)
    assert torch.equal(measured.visible, strategy(GRID, importance=None, noise=noise).visible)

    @dataclass(frozen=True, kw_only=True)
    class NeverMeasured(Sampled):
        def importance(self, frames: Tensor, embed: Embedding) -> Tensor:
            raise AssertionError("the change was measured")

    frames = torch.zeros(50, 3, 4, 16, 64, dtype=torch.uint8)
    kept = {"keep_ratio": 0.5, "visible_ratio": None}
    model = tiny("encoder", frames=4, size=(16, 64), tubelet=(2, 16, 16))
    chosen = model.select_tokens(frames, noise, strategy=NeverMeasured(**kept, uniform=1.0))
    assert torch.equal(chosen.visible, measured.visible)
    with pytest.raises(AssertionError, match="was measured"):
        model.select_tokens(frames, noise, strategy=NeverMeasured(**kept, uniform=0.9))


def test_evaluation_takes_the_most_changed_tokens():
    chosen = Sampled(keep_ratio=0.5, visible_ratio=None, distance="l1").at_evaluation()
    assert chosen == RedundancyRobust(keep_ratio=0.5, visible_ratio=None, distance="l1")
    assert Sampled().at_evaluation(0.25) == RedundancyRobust(keep_ratio=0.25, visible_ratio=None)
