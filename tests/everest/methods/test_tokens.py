from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, TokenSelection, gather_patches, num_kept, patchify, unpatchify
from everest.methods.targets import PixelTargets
from everest.video.pixels import IMAGENET

GRIDS = st.builds(TokenGrid, t=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4))


def frames_of(grid: TokenGrid, tubelet: tuple[int, int, int]) -> torch.Tensor:
    shape = (2, 3, grid.t * tubelet[0], grid.h * tubelet[1], grid.w * tubelet[2])
    return torch.arange(torch.Size(shape).numel()).view(shape)


@given(grid=GRIDS, tubelet=st.sampled_from([(2, 4, 4), (1, 2, 3), (2, 3, 5)]))
def test_unpatchify_inverts_patchify(grid, tubelet):
    frames = frames_of(grid, tubelet)
    assert torch.equal(unpatchify(patchify(frames, tubelet), grid), frames)


@given(grid=GRIDS, data=st.data())
def test_gathered_patches_are_those_of_patchify(grid, data):
    ids = data.draw(st.lists(st.integers(0, grid.num_tokens - 1), min_size=2, max_size=8))
    ids = torch.tensor([ids, ids[::-1]])
    frames = frames_of(grid, (2, 4, 4))
    expected = torch.stack([part[row] for part, row in zip(patchify(frames, (2, 4, 4)), ids, strict=True)])
    assert torch.equal(gather_patches(frames, ids, (2, 4, 4)), expected)


def test_token_id_counts_columns_then_rows_then_time_indices():
    grid = TokenGrid(t=2, h=3, w=5)
    patches = patchify(frames_of(grid, (1, 1, 1)), (1, 1, 1))
    time_index, row, column = 1, 2, 3
    token = (time_index * grid.h + row) * grid.w + column
    assert patches[0, token].flatten()[0] == frames_of(grid, (1, 1, 1))[0, 0, time_index, row, column]


def test_a_clip_that_does_not_divide_has_no_grid_and_fractions_are_floored_on_exact_decimals():
    for size in ((100, 224), (224, 8)):
        with pytest.raises(RecipeError, match="multiple of the tubelet's"):
            TokenGrid.of_clip(frames=16, size=size, tubelet=(2, 16, 16))
    assert num_kept(1568, 0.3) == 470
    assert num_kept(1000, 0.3) == 300
    assert num_kept(10, 0.1) == 1
    assert num_kept(10, 1 - 0.9) == 0  # the caller must keep its decimals


def test_targets_that_count_are_those_not_visible():
    selection = TokenSelection(torch.tensor([[1, 4, 9], [0, 2, 3]]), torch.tensor([[0, 4, 10], [2, 3, 7]]))
    assert selection.loss_mask().tolist() == [[True, False, True], [False, False, True]]
    nothing_visible = TokenSelection(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[3]]))
    assert nothing_visible.loss_mask().tolist() == [[True]]


GRID = TokenGrid(t=2, h=2, w=2)


def chosen(visible, target) -> TokenSelection:
    return TokenSelection(torch.tensor(visible), torch.tensor(target))


def test_a_choice_that_can_be_meant_passes():
    chosen([[0, 7], [1, 2]], [[3, 7], [0, 1]]).check(GRID, batch=2)
    on_meta = TokenSelection(*(torch.zeros(2, 3, dtype=torch.int64, device="meta") for _ in range(2)))
    on_meta.check(GRID, batch=2)


@pytest.mark.parametrize(
    ("visible", "target", "message"),
    [
        ([[2, 1]], [[3, 4]], "selection.visible: ids must ascend"),
        ([[1, 2]], [[4, 4]], "selection.predicted: ids must ascend in each row, without duplicates"),
        ([[-1, 2]], [[3, 4]], "selection.visible: ids from -1 to 2; a clip has the tokens 0 to 7"),
        ([[1, 2]], [[3, 8]], "selection.predicted: ids from 3 to 8"),
        ([[1, 2]] * 2, [[3, 4]] * 2, r"shape \(1, K\) for 1 clips, K at least 1, got torch.int64 \(2, 2\)"),
        ([1, 2], [3, 4], r"expected int64 ids of shape \(1, K\)"),
        ([[1.0, 2.0]], [[3, 4]], "expected int64 ids .* got torch.float32"),
        ([[1, 2]], [[1, 2]], "all predicted tokens are visible"),
    ],
)
def test_a_choice_that_cannot_be_meant_says_why(visible, target, message):
    with pytest.raises(ValueError, match=message):
        chosen(visible, target).check(GRID, batch=1)


def test_a_choice_names_tokens_that_need_not_be_contiguous():
    for part in ("visible", "predicted"):
        ids = {"visible": torch.tensor([[1]]), "predicted": torch.tensor([[2]])}
        ids[part] = ids[part][:, :0]
        with pytest.raises(ValueError, match=f"selection.{part}: expected int64 ids .* K at least 1"):
            TokenSelection(**ids).check(GRID, batch=1)
    ids = torch.tensor([[1, 3], [2, 5], [4, 6]]).T  # (2, 3), strides of a transpose
    assert not ids.is_contiguous()
    assert not TokenSelection(ids, ids).loss_mask().any()  # a warning is an error here


@pytest.mark.parametrize("normalize", [True, "token"])
def test_predicting_the_mean_color_of_tubelets_has_the_stated_loss(normalize):
    targets = PixelTargets(normalize=normalize).make((2, 4, 4), IMAGENET)
    frames, ids = torch.rand(2, 3, 4, 8, 8), torch.arange(8).expand(2, 8)
    values = targets.values(frames, ids)
    loss = targets.loss(torch.zeros_like(values), values, torch.ones(2, 8, dtype=torch.bool))
    assert loss.item() == pytest.approx(targets.loss_of_one_color, rel=0.05)
    assert PixelTargets(normalize=False).make((2, 4, 4), IMAGENET).loss_of_one_color is None
