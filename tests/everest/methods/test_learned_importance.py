"""LVMAE's selection: the tokens that it encodes and predicts, for every score."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid
from everest.methods.importance import RawPixels, pixel_change
from everest.methods.selection import measure_importance
from everest.methods.strategies import LearnedImportance, Tube

GRID = TokenGrid(t=16, h=4, w=4)
SCORES = ("learned", "random", "frame-difference")


def noise(batch: int = 2, grid: TokenGrid = GRID, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, grid.num_tokens, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("score", SCORES)
def test_the_encoder_sees_the_same_tubes_whatever_scores(score):
    sampled = noise()
    chosen = LearnedImportance(score=score)(GRID, importance=noise(seed=1), noise=sampled)
    assert torch.equal(chosen.visible, Tube()(GRID, importance=None, noise=sampled).visible)
    assert chosen.loss_mask().all()  # no token is both visible and predicted


def test_the_highest_unseen_scores_are_predicted_and_the_rest_is_random():
    sampled, scores = noise(), noise(seed=1)
    chosen = LearnedImportance(random_ratio=0.0)(GRID, importance=scores, noise=sampled)
    unseen = scores.scatter(1, chosen.visible, -1.0)
    assert torch.equal(chosen.predicted, unseen.topk(25).indices.sort(dim=1).values)
    with_chance = LearnedImportance()(GRID, importance=scores, noise=sampled).predicted
    assert with_chance.size(1) == 25 + 12
    for of_both, important in zip(with_chance, chosen.predicted, strict=True):
        assert set(important.tolist()) < set(of_both.tolist())


@pytest.mark.parametrize("score", ["learned", "random"])
def test_the_random_part_favors_none_of_the_hidden_tokens(score):
    """The tubes are sampled from the same numbers, which must not decide what is predicted first."""
    grid, batch = TokenGrid(t=2, h=4, w=4), 4000
    sampled = noise(batch, grid)
    chosen = LearnedImportance(mask_ratio=0.5, keep_ratio=0.0, random_ratio=0.25, score=score)(
        grid, importance=torch.zeros(batch, grid.num_tokens), noise=sampled
    )
    first = (chosen.predicted < grid.num_positions).float().mean(dim=1)  # share in the first time index
    deviation = first.std() / math.sqrt(batch)
    assert abs(first.mean() - 0.5) < 4 * deviation


@given(
    st.integers(1, 20), st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 0.95), st.floats(0, 0.5),
    st.floats(0, 0.5), st.sampled_from(SCORES),
)  # fmt: skip
def test_counts_follow_from_the_grid_alone(t, h, w, mask, keep, chance, score):
    grid = TokenGrid(t=t, h=h, w=w)
    strategy = LearnedImportance(
        mask_ratio=round(mask, 2), keep_ratio=round(keep, 2), random_ratio=round(chance, 2), score=score
    )
    shapes = set()
    for seed in range(2):
        chosen = strategy(grid, importance=noise(3, grid, seed + 5), noise=noise(3, grid, seed))
        assert all(len(set(row.tolist())) == chosen.predicted.size(1) for row in chosen.predicted)
        assert torch.equal(chosen.predicted, chosen.predicted.sort(dim=1).values)
        shapes.add((chosen.visible.shape, chosen.predicted.shape))
        both = torch.cat([chosen.visible, chosen.predicted], dim=1)
        assert all(len(set(row.tolist())) == both.size(1) for row in both)
    assert len(shapes) == 1


def test_each_score_comes_from_its_measure():
    frames, pixels = torch.rand(1, 3, 4, 4, 4), RawPixels((2, 2, 2))
    scores = torch.rand(1, 8)

    def measured(**settings):
        return measure_importance(LearnedImportance(**settings), frames, pixels, lambda _: scores)

    assert measured() is scores
    assert torch.equal(measured(score="frame-difference"), pixel_change(frames, (2, 2, 2)))
    assert measured(score="random") is None
    with pytest.raises(RecipeError, match="needs a trained tokenizer"):
        measure_importance(LearnedImportance(), frames, pixels, None)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("k400", "strategy=learned-importance", "pretrain.selection.score: needs a tokenizer"),
        ("lvmae-demo", "keep_ratio=0.6 random_ratio=0.5", r"random_ratio: 0\.5 and keep_ratio \(0\.6\)"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(recipe: str, overrides: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, overrides=[f"pretrain.selection.{part}" for part in overrides.split()])


def test_a_recipe_may_predict_no_token_at_random_and_no_token_without_a_tokenizer():
    recipe = load_recipe("lvmae-128", overrides=["pretrain.selection.random_ratio=0.0"])
    assert recipe.pretrain.selection.random_ratio == 0
    with pytest.raises(RecipeError, match=r"pretrain\.target\.kind: needs a tokenizer"):
        load_recipe("k400", overrides=["pretrain.target.kind=tokens"])
