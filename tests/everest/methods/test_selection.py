from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.methods.importance import DistanceName, RawPixels, embedding_change, pixel_change
from everest.methods.selection import FrameDifference, RedundancyRobust, Sampled
from everest.methods.strategies import (
    STRATEGIES,
    AllTokens,
    FrameWise,
    LearnedImportance,
    RandomSpaceTime,
    RunningCell,
    Tube,
    TubeDropout,
)
from everest.methods.targets import mean_squared_error
from everest.models.vit import TubeletEmbedding

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
    Sampled(): [(156, 314), (235, 470), (1254, 2509), (18, 36)],
    Tube(): [(160, 1408), (240, 2112), (1280, 11264), (20, 160)],
    RandomSpaceTime(): [(156, 1412), (235, 2117), (1254, 11290), (18, 162)],
    FrameDifference(keep_ratio=0.4): [(156, 471), (235, 705), (1254, 3763), (18, 54)],
    FrameWise(): [(196, 1372), (392, 1960), (1568, 10976), (45, 135)],
    LearnedImportance(): [(160, 234), (240, 352), (1280, 1881), (20, 27)],
    TubeDropout(): [(1248, 0), (1872, 0), (9984, 0), (144, 0)],
    AllTokens(): [(1568, 0), (2352, 0), (12544, 0), (180, 0)],
}


def test_every_strategy_has_its_counts_tested():
    # Running cells have tests of their own: what they predict may be visible, and no grid may be odd.
    assert {type(strategy) for strategy in COUNTS} == set(STRATEGIES.values()) - {RunningCell}


@pytest.mark.parametrize("strategy", [*COUNTS, RunningCell()], ids=lambda s: s.strategy)
def test_only_rankings_without_hidden_tokens_and_all_tokens_ignore_the_noise(strategy):
    """A classifier gets noise in training, and none in evaluation: these are the same there."""
    grid = TokenGrid(t=8, h=14, w=14)
    torch.manual_seed(0)
    importance, *noises = torch.rand(3, 2, grid.num_tokens).unbind()
    first, second = (strategy(grid, importance=importance, noise=noise) for noise in noises)
    ignores = strategy in (AllTokens(), RedundancyRobust(keep_ratio=0.6, visible_ratio=None))
    assert torch.equal(first.visible, second.visible) == ignores


def test_a_classifier_without_ranking_encodes_all_tokens_in_evaluation():
    for strategy in (TubeDropout(keep_ratio=0.5), AllTokens()):
        assert strategy.at_evaluation() == AllTokens()
        assert strategy.at_evaluation(0.3) == RedundancyRobust(keep_ratio=0.3, visible_ratio=None)
    strategy = RedundancyRobust(keep_ratio=0.6, visible_ratio=None)
    assert strategy.at_evaluation() is strategy
    assert strategy.at_evaluation(0.3).keep_ratio == 0.3


@pytest.mark.parametrize("strategy", COUNTS, ids=lambda s: f"{s.strategy}-{getattr(s, 'visible_ratio', '')}")
@pytest.mark.parametrize("name", GRIDS)
def test_choice_is_ascending_disjoint_counted_and_repeatable(strategy, name):
    grid, counts = GRIDS[name], COUNTS[strategy][list(GRIDS).index(name)]
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(2, grid.num_tokens, generator=generator)
    importance = torch.rand(2, grid.num_tokens, generator=generator)
    chosen = strategy(grid, importance=importance, noise=noise)
    assert (chosen.visible.size(1), chosen.predicted.size(1)) == counts
    for ids in (chosen.visible, chosen.predicted):
        assert (ids.diff(dim=1) > 0).all()
    both = torch.cat([chosen.visible, chosen.predicted], dim=1)
    assert all(row.unique().numel() == sum(counts) for row in both)
    assert both.min() >= 0
    assert both.max() < grid.num_tokens
    again = strategy(grid, importance=importance, noise=noise)
    assert torch.equal(again.visible, chosen.visible)
    assert torch.equal(again.predicted, chosen.predicted)
    on_meta = strategy(grid, importance=importance.to("meta"), noise=noise.to("meta"))
    assert (on_meta.visible.size(1), on_meta.predicted.size(1)) == counts


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


def test_tube_masks_the_same_positions_at_every_time_index_and_tube_dropout_keeps_those_it_would_encode():
    grid = TokenGrid(t=4, h=4, w=4)
    noise = torch.rand(2, grid.num_tokens)
    tube = Tube(mask_ratio=0.25)(grid, importance=None, noise=noise)
    places = (tube.visible % grid.num_positions).view(2, grid.t, -1)
    assert (places == places[:, :1]).all()
    dropout = TubeDropout(keep_ratio=0.75)(grid, importance=None, noise=noise)
    assert torch.equal(dropout.visible, tube.visible)


# Two time indices of one position: the tubelet's six values before and after.
BEFORE = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0])
AFTER = torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0, 0.0])
BY_HAND = {
    "l2": 17**0.5,  # differences 0, -2, 0, -3, 2, 0
    "l1": 7.0,
    "neg-cosine": -14 / (30 * 15) ** 0.5,
    # centered: before -2/3 + ..., Pearson r = (14/6 - 10/6 * 7/6) / (sd * sd)
    "neg-cka": -(((14 / 6 - 10 / 6 * 7 / 6) ** 2) / ((30 / 6 - (10 / 6) ** 2) * (15 / 6 - (7 / 6) ** 2))),
}


@pytest.mark.parametrize("distance", get_args(DistanceName))
def test_distances_equal_the_hand_computed_case(distance):
    clip = torch.stack([BEFORE, AFTER]).view(1, 2, 3, 1, 2).movedim(1, 2)  # (1, 3, 2, 1, 2)
    importance = embedding_change(clip, RawPixels((1, 1, 2)), distance=distance)
    assert importance[0].tolist() == pytest.approx([BY_HAND[distance]] * 2, rel=1e-6)


NO_CHANGE = {"l2": 0.0, "l1": 0.0, "neg-cosine": -1.0, "neg-cka": -1.0}
SAMPLED_CLIPS = {"seed": st.integers(0, 2**32 - 1), "moving": st.sampled_from([0.0, 0.1, 0.5, 0.9])}


def partly_still_clip(seed: int, moving: float) -> tuple[Tensor, Tensor]:
    """A clip of noise (1, 3, 8, 32, 32), and which tokens (4 x 4 x 4) are equal to the time index before."""
    generator = torch.Generator().manual_seed(seed)
    time_indices = list(torch.randn(4, 3, 2, 32, 32, generator=generator))
    still = torch.rand(4, 4, 4, generator=generator) >= moving  # of the first slice: those of the second
    for number in range(1, 4):
        equal = still[number].repeat_interleave(8, 0).repeat_interleave(8, 1)  # (32, 32)
        time_indices[number] = torch.where(equal, time_indices[number - 1], time_indices[number])
    still[0] = still[1]
    return torch.cat(time_indices, dim=1)[None], still.flatten()


@pytest.mark.parametrize("distance", get_args(DistanceName))
@pytest.mark.parametrize("layers", [0, 1, 3], ids=["pixels", "one layer", "three layers"])
@given(**SAMPLED_CLIPS)
@settings(max_examples=25)
def test_tokens_equal_to_the_time_index_before_have_exactly_no_change(distance, layers, seed, moving):
    clip, still = partly_still_clip(seed, moving)
    torch.manual_seed(seed)
    embed = TubeletEmbedding(24, (2, 8, 8), layers=layers) if layers else RawPixels((2, 8, 8))
    importance = embedding_change(clip, embed, distance=distance)[0]
    assert (importance[still] == NO_CHANGE[distance]).all()
    assert (importance[~still] > NO_CHANGE[distance]).all()


def test_first_time_index_copies_the_second_or_is_zero_in_float32():
    frames = torch.rand(2, 3, 6, 4, 4)
    copied = embedding_change(frames, RawPixels((2, 2, 2)))
    zero = embedding_change(frames, RawPixels((2, 2, 2)), first_slice="zero")
    assert torch.equal(copied[:, :4], copied[:, 4:8])
    assert (zero[:, :4] == 0).all()
    assert torch.equal(copied[:, 4:], zero[:, 4:])
    assert not embedding_change(frames[:, :, :2], RawPixels((2, 2, 2))).any()  # a clip of one time index
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedding_change(frames.bfloat16(), RawPixels((2, 2, 2))).dtype == torch.float32


def test_keeping_a_fraction_of_whole_time_indices_or_positions_masks_the_floor():
    grid = TokenGrid(t=8, h=2, w=2)
    noise = torch.rand(1, grid.num_tokens)
    for strategy, fraction, visible in [(FrameWise(), 0.3, 3 * 4), (RunningCell(), 0.3, 2 * 8)]:
        assert strategy.keeping(fraction)(grid, importance=None, noise=noise).visible.size(1) == visible


def test_frame_masking_hides_whole_time_indices():
    grid = TokenGrid(t=8, h=3, w=3)
    noise = torch.rand(4, grid.num_tokens)
    chosen = FrameWise(mask_ratio=0.75)(grid, importance=None, noise=noise)
    for visible, row in zip(chosen.visible // 9, noise[:, :8], strict=True):
        assert visible.unique().tolist() == sorted(row.argsort()[:2].tolist())
        assert visible.bincount().max() == 9


# The chosen positions of a cell in four time indices, numbered row by row, from each of two phases. In
# VideoMAE V2's official code they move back by one position with every time index, in MAR's forward.
BACK = {0.0: [{0, 1}, {3, 0}, {2, 3}, {1, 2}], 0.5: [{2, 3}, {1, 2}, {0, 1}, {3, 0}]}
FORWARD = {0.0: [{0, 1}, {1, 2}, {2, 3}, {3, 0}], 0.5: [{2, 3}, {3, 0}, {0, 1}, {1, 2}]}


def positions_of_cells(ids, grid):
    """The positions of every cell and time index that hold one of the tokens `ids`."""
    places = {(t, i, j): set() for t in range(grid.t) for i in range(grid.h // 2) for j in range(grid.w // 2)}
    for number in ids.tolist():
        t, place = divmod(number, grid.num_positions)
        row, column = divmod(place, grid.w)
        places[t, row // 2, column // 2].add(2 * (row % 2) + column % 2)
    return places


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("grid", [TokenGrid(t=4, h=2, w=4), TokenGrid(t=4, h=4, w=4)], ids=["wide", "square"])
def test_cells_move_one_position_a_time_index_back_in_videomae_v2_and_forward_in_mar(grid, start):
    noise = torch.rand(1, grid.num_tokens)
    noise[:, -1] = start
    v2, mar = (
        RunningCell(encoder=encoder, mask_ratio=0.5)(grid, importance=None, noise=noise)
        for encoder in ("tube", "running-cell")
    )
    for (t, *_), places in positions_of_cells(v2.predicted[0], grid).items():
        assert places == BACK[start][t]
    for (t, *_), places in positions_of_cells(mar.visible[0], grid).items():
        assert places == FORWARD[start][t]
    for (t, *_), places in positions_of_cells(mar.predicted[0], grid).items():
        assert places == {0, 1, 2, 3} - FORWARD[start][t]


def test_running_cells_overlap_a_tube_and_the_overlap_counts_for_nothing():
    grid = TokenGrid(t=8, h=14, w=14)
    chosen = RunningCell()(grid, importance=None, noise=torch.rand(3, grid.num_tokens))
    assert chosen.loss_mask().sum(dim=1).tolist() == [704] * 3  # 784 targets, 80 of them visible


def test_a_micro_batch_without_tokens_that_count_has_a_loss_of_zero():
    grid = TokenGrid(t=2, h=2, w=2)
    noise = torch.zeros(1, grid.num_tokens)
    masks = RunningCell(mask_ratio=0.5, target_ratio=0.25)
    losses = []
    for start in torch.linspace(0, 0.99, 16):
        noise[:, -1], noise[:, 0] = start, start * 7 % 1
        loss_mask = masks(grid, importance=None, noise=noise).loss_mask()
        loss = mean_squared_error(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), loss_mask)
        losses.append((bool(loss_mask.any()), loss))
    assert {seen: loss.item() for seen, loss in losses} == {True: 1.0, False: 0.0}


def test_running_cells_of_the_encoder_leave_the_rest_to_predict_and_need_even_rows_and_columns():
    grid = TokenGrid(t=8, h=4, w=4)
    noise = torch.rand(2, grid.num_tokens)
    chosen = RunningCell(encoder="running-cell", mask_ratio=0.5)(grid, importance=None, noise=noise)
    both = torch.cat([chosen.visible, chosen.predicted], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(grid.num_tokens).expand(2, -1))
    with pytest.raises(RecipeError, match="do not fill 3 x 4 positions"):
        RunningCell()(TokenGrid(t=4, h=3, w=4), importance=None, noise=noise)


def test_pixel_importance_is_the_mean_change_of_a_tubelet():
    frames = torch.zeros(1, 3, 4, 2, 2)
    frames[:, :, 2:, 0, 0] = 6.0  # one of the two pixels of the upper tubelet jumps at frame 2
    importance = pixel_change(frames, (2, 1, 2))
    assert importance.tolist() == [[0.0, 0.0, 1.5, 0.0]]  # 6 in one of two frames and one of two pixels
    first = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1, 1).expand(1, 3, 2, 1, 1)
    assert pixel_change(first, (2, 1, 1)).tolist() == [[4.0]]  # the first frame takes the second's change
    assert pixel_change(torch.rand(1, 3, 1, 2, 2), (1, 1, 2)).tolist() == [[0.0, 0.0]]
