from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everest.selection import (
    DISTANCES,
    STRATEGIES,
    AllTokens,
    RandomSpaceTime,
    RedundancyRobust,
    Tube,
    change_importance,
)
from everest.tokens import TokenGrid

GRIDS = {
    "16 frames": TokenGrid(t=8, h=14, w=14),
    "24 frames": TokenGrid(t=12, h=14, w=14),
    "128 frames": TokenGrid(t=64, h=14, w=14),
    "wide": TokenGrid(t=4, h=5, w=9),
}
# strategy -> (visible, target) on each grid of GRIDS
COUNTS = {
    RedundancyRobust(): [(156, 314), (235, 470), (1254, 2509), (18, 36)],
    RedundancyRobust(keep_ratio=0.6, visible_ratio=None): [(940, 0), (1411, 0), (7526, 0), (108, 0)],
    Tube(): [(160, 1408), (240, 2112), (1280, 11264), (20, 160)],
    RandomSpaceTime(): [(156, 1412), (235, 2117), (1254, 11290), (18, 162)],
    AllTokens(): [(1568, 0), (2352, 0), (12544, 0), (180, 0)],
}


class Identity:
    """Pixels as their own embedding."""

    tubelet = (2, 2, 2)

    def __call__(self, patches):
        return patches.flatten(2)

    of_change = __call__


def test_every_strategy_has_its_counts_tested():
    assert {type(strategy) for strategy in COUNTS} == set(STRATEGIES.values())


@pytest.mark.parametrize("strategy", COUNTS, ids=lambda s: f"{s.strategy}-{getattr(s, 'visible_ratio', '')}")
@pytest.mark.parametrize("name", GRIDS)
def test_choice_is_ascending_disjoint_counted_and_repeatable(strategy, name):
    grid, counts = GRIDS[name], COUNTS[strategy][list(GRIDS).index(name)]
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(2, grid.num_tokens + grid.t, generator=generator)
    importance = torch.rand(2, grid.num_tokens, generator=generator)
    chosen = strategy(grid, importance=importance, noise=noise)
    assert (chosen.visible.size(1), chosen.target.size(1)) == counts
    for ids in (chosen.visible, chosen.target):
        assert (ids.diff(dim=1) > 0).all()
    both = torch.cat([chosen.visible, chosen.target], dim=1)
    assert all(row.unique().numel() == sum(counts) for row in both)
    assert both.min() >= 0
    assert both.max() < grid.num_tokens
    again = strategy(grid, importance=importance, noise=noise)
    assert torch.equal(again.visible, chosen.visible)
    assert torch.equal(again.target, chosen.target)
    on_meta = strategy(grid, importance=importance.to("meta"), noise=noise.to("meta"))
    assert (on_meta.visible.size(1), on_meta.target.size(1)) == counts


@given(seed=st.integers(0, 1000), keep=st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_no_dropped_token_matters_more_than_a_kept_one(seed, keep):
    grid = TokenGrid(t=3, h=4, w=5)
    importance = torch.rand(2, grid.num_tokens, generator=torch.Generator().manual_seed(seed))
    descending = RedundancyRobust(keep_ratio=keep, visible_ratio=None)
    kept = descending(grid, importance=importance, noise=importance).visible
    for row, ids in zip(importance, kept, strict=True):
        dropped = torch.ones(grid.num_tokens, dtype=torch.bool)
        dropped[ids] = False
        assert row[ids].min() >= row[dropped].max()
    ascending = RedundancyRobust(keep_ratio=keep, visible_ratio=None, order="ascending")
    assert torch.equal(ascending(grid, importance=-importance, noise=importance).visible, kept)


def test_tube_masks_the_same_places_in_every_slice():
    grid = TokenGrid(t=4, h=3, w=3)
    chosen = Tube(mask_ratio=0.75)(grid, importance=None, noise=torch.rand(1, grid.num_tokens))
    places = (chosen.visible % grid.per_slice).view(grid.t, -1)
    assert (places == places[0]).all()


# Two slices of one place: the tubelet's six values before and after.
BEFORE = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0])
AFTER = torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0, 0.0])
BY_HAND = {
    "l2": 17**0.5,  # differences 0, -2, 0, -3, 2, 0
    "l1": 7.0,
    "neg-cosine": -14 / (30 * 15) ** 0.5,
    # centred: before -2/3 + ..., Pearson r = (14/6 - 10/6 * 7/6) / (sd * sd)
    "neg-cka": -(((14 / 6 - 10 / 6 * 7 / 6) ** 2) / ((30 / 6 - (10 / 6) ** 2) * (15 / 6 - (7 / 6) ** 2))),
}


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_equal_the_hand_computed_case(distance):
    clip = torch.stack([BEFORE, AFTER]).view(1, 2, 3, 1, 2).movedim(1, 2)  # (1, 3, 2, 1, 2)
    importance = change_importance(clip, Identity(), (1, 1, 2), distance=distance)
    assert importance[0].tolist() == pytest.approx([BY_HAND[distance]] * 2, rel=1e-6)


def test_first_slice_copies_the_second_or_is_zero():
    frames = torch.rand(2, 3, 6, 4, 4)
    copied = change_importance(frames, Identity(), (2, 2, 2))
    zero = change_importance(frames, Identity(), (2, 2, 2), first_slice="zero")
    assert torch.equal(copied[:, :4], copied[:, 4:8])
    assert (zero[:, :4] == 0).all()
    assert torch.equal(copied[:, 4:], zero[:, 4:])


def test_a_clip_of_one_slice_has_no_change():
    assert change_importance(torch.rand(1, 3, 2, 4, 4), Identity(), (2, 2, 2)).tolist() == [[0.0] * 4]


def test_importance_is_float32_under_autocast():
    frames = torch.rand(1, 3, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        importance = change_importance(frames.bfloat16(), Identity(), (2, 2, 2))
    assert importance.dtype == torch.float32


def test_only_strategies_that_sort_by_change_measure_it():
    frames = torch.rand(1, 3, 4, 4, 4)
    embed = Identity()
    for strategy in STRATEGIES.values():
        measured = strategy().importance(frames, embed)
        assert (measured is not None) == (strategy is RedundancyRobust)
    own = RedundancyRobust(distance="l1", first_slice="zero").importance(frames, embed)
    expected = change_importance(frames, embed, (2, 2, 2), distance="l1", first_slice="zero")
    assert torch.equal(own, expected)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7, 1])
def test_keeping_a_share_encodes_it_on_exact_decimals(name, keep):
    grid = TokenGrid(t=2, h=2, w=5)
    noise = torch.rand(1, grid.num_tokens)
    chosen = STRATEGIES[name]().keeping(keep)(grid, importance=noise, noise=noise)
    assert chosen.visible.size(1) == round(keep * grid.num_tokens)
