"""Frame selection against exact probabilities, cases by hand, and what the model does with it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from everest.checkpoints.frozen import find_frozen
from everest.config.recipe import load_recipe
from everest.data.recipe_clips import pretrain_dataset
from everest.methods.grid import NoiseLayout, TokenGrid, num_candidates
from everest.methods.selection import count_kept_tokens, sample_time_indices
from everest.methods.strategies import RedundancyRobust
from everest.models.spec import pretrain_spec


@pytest.mark.parametrize(
    ("time_indices", "alpha", "expected"),
    # Table 13 has 10.4 and 14.4 pairs; in floating point 100 * 1.15 is less than 115.
    [(8, 1.5, 12), (8, 1.3, 10), (8, 1.8, 14), (8, 2.0, 16), (8, 1.0, 8), (8, 1.1, 8), (100, 1.15, 115)],
)
def test_candidates_are_the_floor_of_alpha_times_as_many(time_indices: int, alpha: float, expected: int):
    assert num_candidates(time_indices, alpha) == expected


def test_kept_tokens_are_counted_by_time_index():
    grid = TokenGrid(t=3, h=1, w=3)
    importance = torch.tensor([[1.0, 9, 2, 8, 7, 6, 0, 0, 5]])  # the five largest: 9 | 8 7 6 | 5
    assert count_kept_tokens(RedundancyRobust(keep_ratio=0.56), importance, grid).tolist() == [[1, 3, 1]]
    ascending = RedundancyRobust(keep_ratio=0.34, visible_ratio=None, order="ascending")
    assert count_kept_tokens(ascending, importance, grid).tolist() == [[1, 0, 2]]
    kept = count_kept_tokens(
        RedundancyRobust(keep_ratio=0.5), torch.tensor([[0.0, 1, 5, 6]]), TokenGrid(t=2, h=1, w=2)
    )
    assert sample_time_indices(kept, torch.tensor([[0.9, 0.2]]), 1).tolist() == [
        [1]
    ]  # both kept tokens are in time index 1
    # A uniform number of zero is drawn last, and not an empty time index.
    assert sample_time_indices(torch.tensor([[3, 0, 3]]), torch.tensor([[0.0, 0.1, 0.5]]), 2).tolist() == [
        [0, 2]
    ]


def exact_inclusion(counts: list[int], num: int) -> dict[tuple[int, ...], float]:
    """Probability of each set of `num` time indices sampled one by one, each by its part of what is left."""
    sets: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(counts)), num):
        left, probability = sum(counts), 1.0
        for place in order:
            probability *= counts[place] / left
            left -= counts[place]
        key = tuple(sorted(order))
        sets[key] = sets.get(key, 0.0) + probability
    return sets


@pytest.mark.parametrize("counts", [[1, 2, 3, 4], [5, 5, 5], [1, 30, 2, 7, 4]])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_sets_are_drawn_with_their_exact_probabilities(counts: list[int], num: int):
    draws = 20_000
    uniform = torch.rand(draws, len(counts), generator=torch.Generator().manual_seed(num))
    sampled = sample_time_indices(torch.tensor([counts]).expand(draws, -1), uniform, num)
    sets = exact_inclusion(counts, num)
    assert sum(sets.values()) == pytest.approx(1)
    observed = dict.fromkeys(sets, 0)
    for row in sampled.tolist():
        observed[tuple(row)] += 1
    if len(sets) > 1:
        expected = [probability * draws for probability in sets.values()]
        assert chisquare(list(observed.values()), expected).pvalue > 1e-3


@given(
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=12), seed=st.integers(0, 2**31), data=st.data()
)
def test_time_indices_with_kept_tokens_come_before_those_without(
    counts: list[int], seed: int, data: st.DataObject
):
    num = data.draw(st.integers(1, len(counts)))
    uniform = torch.rand(1, len(counts), generator=torch.Generator().manual_seed(seed))
    sampled = sample_time_indices(torch.tensor([counts]), uniform, num)[0].tolist()
    assert sampled == sorted(set(sampled))  # in temporal order, each once
    assert len(sampled) == num
    full = {place for place, count in enumerate(counts) if count}
    assert full <= set(sampled) or set(sampled) <= full
    empty = sorted(set(range(len(counts))) - full, key=lambda place: float(uniform[0, place]))
    missing = max(0, num - len(full))
    assert set(sampled) - full == set(empty[:missing])  # in the order of their numbers


def test_the_numbers_are_those_of_tokens_then_time_indices_then_the_camera():
    grid = TokenGrid(t=2, h=2, w=2)
    layout = NoiseLayout.of(grid, alpha=1.5, camera=0.5)
    assert layout.candidates == TokenGrid(t=3, h=2, w=2)
    noise = torch.rand(2, 12 + 3 + 5)
    parts = layout.split(noise)
    assert [part.size(1) for part in parts] == [12, 3, 5]
    assert torch.equal(torch.cat(parts, dim=1), noise)
    assert NoiseLayout.of(grid).total == 8
    for other in (noise[:, :-1], torch.cat([noise, noise], dim=1)):
        with pytest.raises(
            ValueError, match=r"numbers a clip, not 20 \(12 for tokens, 3 for time indices, 5 for"
        ):
            layout.split(other)


@pytest.mark.parametrize(
    "override",
    ["camera_motion=0.5", "frame_selection.alpha=1.5", "objective=views", "selection={strategy: tube}"],
)
def test_the_loader_draws_the_numbers_that_the_model_splits(recipe: Path, override: str):
    loaded = load_recipe(recipe, overrides=[f"pretrain.{override}"])
    model = pretrain_spec(loaded, find_frozen(loaded)).build()
    assert pretrain_dataset(loaded, model.noise_layout).num_noise == model.noise_layout.total  # pyright: ignore
