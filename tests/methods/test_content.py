"""Tokens above a threshold on importance: how many a clip keeps, and which."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny

from everest.errors import RecipeError
from everest.methods.content import Above, num_above, part_levels, part_size, ranking, threshold_of_mean
from everest.methods.grid import TokenGrid, TokenSelection
from everest.methods.selector import measure
from everest.methods.strategies import AllTokens, FrameDifference, RedundancyRobust

GRID = TokenGrid(t=4, h=5, w=4)  # 80 tokens: 27 parts, the last of 2 tokens


@given(seed=st.integers(0, 2**31 - 1), threshold=st.floats(-0.1, 1.1))
def test_a_clip_keeps_all_tokens_above_in_whole_parts(seed: int, threshold: float):
    importance = torch.rand(3, GRID.num_tokens, generator=torch.Generator().manual_seed(seed))
    counts = num_above(GRID, part_levels(GRID, importance), Above(threshold))
    above, part = (importance > threshold).sum(dim=1), part_size(GRID)
    expected = [min(80, max(1, math.ceil(number / part)) * part) for number in above.tolist()]
    assert counts.tolist() == expected


def test_a_threshold_for_a_mean_keep_ratio_gives_it():
    importance = torch.rand(40, 64, generator=torch.Generator().manual_seed(0))
    importance *= torch.linspace(0.1, 2, 40)[:, None]  # clips from still to busy
    grid = TokenGrid(t=4, h=4, w=4)
    levels = part_levels(grid, importance)
    for keep in (0.1, 0.3, 0.5, 0.9, 1.0):
        threshold = threshold_of_mean(levels.numpy(), keep)
        mean = num_above(grid, levels, Above(threshold)).float().mean() / 64
        assert mean == pytest.approx(keep, abs=1 / (32 * 40))  # a part of one clip
    least = num_above(grid, levels, Above(threshold_of_mean(levels.numpy(), 0.001)))
    assert least.tolist() == [2] * 40


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """Clips (6, 3, T, H, W) from still to busy, which change less at the left than at the right."""
    noise = torch.rand(6, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    strength = torch.linspace(0.2, 1, 6).view(-1, 1, 1, 1, 1) * torch.linspace(0.1, 1, 32)
    return (255 * noise * strength).to(torch.uint8)


@pytest.mark.parametrize(
    "strategy", [AllTokens(), FrameDifference(keep_ratio=0.5, visible_ratio=None, slice_cap=0.5)]
)
def test_a_clip_has_the_outputs_of_its_own_tokens_in_any_batch(clips: torch.Tensor, strategy):
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, selection=strategy).eval()
    torch.nn.init.normal_(model.head.weight)  # new heads are near zero, and hide differences
    grid, selector = model.encoder.grid, ranking(model.selector)
    importance = measure(selector, clips, model.measure)
    assert importance is not None
    above = Above(float(importance.median()))
    with torch.inference_mode():
        found = model.by_content(clips, above)
        assert len(set(found.tokens.tolist())) > 2
        for number, count in enumerate(found.tokens.tolist()):
            alone = model.by_content(clips[number : number + 1], above)
            assert alone.tokens.item() == count
            # Equal up to rounding: products of several clips may sum in another order.
            torch.testing.assert_close(alone.outputs[0], found.outputs[number], rtol=1e-5, atol=1e-5)
            ids = selector.kept(grid, importance[number : number + 1], count).sort(dim=1).values
            given_ids = model(clips[number : number + 1], selection=TokenSelection(ids, ids[:, :0]))
            torch.testing.assert_close(given_ids[0], found.outputs[number], rtol=1e-5, atol=1e-5)


def test_thresholds_and_models_without_sense_are_refused():
    for threshold in (math.nan, math.inf):
        with pytest.raises(RecipeError, match=r"--keep-above .*: must be a finite number"):
            Above(threshold)
    assert ranking(AllTokens()) == RedundancyRobust(visible_ratio=None)
    with pytest.raises(RecipeError, match="redundancy-robust of this model does not keep the most important"):
        ranking(RedundancyRobust(order="ascending", visible_ratio=None))
