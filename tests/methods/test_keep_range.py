"""A keep ratio that each step of fine-tuning draws from a range: in recipes, in strategies, in weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everest.config.heads import Head
from everest.config.recipe import dump_recipe, load_recipe
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, num_kept
from everest.methods.selector import SHARES, share_at
from everest.models.of_recipe import classifier_spec, pretrain_spec
from everest.models.spec import ModelSpec

GRID = TokenGrid(t=4, h=4, w=4)
ALL_AT_EVALUATION = "tube-dropout"


@pytest.mark.parametrize("name", ["redundancy-robust", "drawn", "frame-difference", ALL_AT_EVALUATION])
def test_a_range_is_read_written_and_stored_and_counts_as_its_upper_end(name: str, tmp_path: Path):
    settings = f"{{strategy: {name}, keep_ratio: [0.25, 0.75]}}"
    recipe = load_recipe("small", overrides=[f"finetune.selection={settings}"])
    selection = recipe.finetune.selection
    assert selection.keep_range == (0.25, 0.75)
    (tmp_path / "small.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "small.yaml").finetune == recipe.finetune
    spec = classifier_spec(recipe, (Head(outputs=3),))
    assert ModelSpec.from_settings(spec.dump(), source=tmp_path) == spec

    noise = torch.rand(2, GRID.num_tokens, generator=torch.Generator().manual_seed(0))
    trained = selection(GRID, importance=noise, noise=noise)
    tested = selection.at_evaluation()(GRID, importance=noise, noise=noise)
    assert trained.visible.size(1) == 48
    assert tested.visible.size(1) == (64 if name == ALL_AT_EVALUATION else 48)
    for share in (0.25, 0.5):
        drawn = selection.keeping(share)(GRID, importance=noise, noise=noise)
        assert drawn.visible.size(1) == num_kept(GRID.num_tokens, share)


@pytest.mark.parametrize(
    ("key", "problem"),
    {
        "finetune.selection.keep_ratio=[0.3]": "the ends of a range such as [0.3, 1.0], not [0.3]",
        "finetune.selection.keep_ratio=[0.9, 0.3]": "two shares above 0 and at most 1, the smaller one first",
        "finetune.selection.keep_ratio=[0.3, 1.5]": "two shares above 0 and at most 1",
        "finetune.selection.keep_ratio=[0, 1.0]": "two shares above 0 and at most 1",
        "finetune.selection.keep_ratio=[0.3, all]": "must be a number, not 'all'",
        "finetune.selection.keep_ratio=true": "must be a number, not true",
        "finetune.selection.keep_ratio=[0.0001, 1.0]": "0.0001 keeps none of 576 tokens",
        "pretrain.selection.keep_ratio=[0.3, 1.0]": "a range is drawn from in fine-tuning only",
    }.items(),
)
def test_other_ranges_are_refused_by_their_key(key: str, problem: str):
    with pytest.raises(RecipeError) as error:
        load_recipe("small", overrides=[key])
    assert str(error.value).startswith(f"--set: {key.partition('=')[0]}")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_of_pre_training_has_no_range():
    spec = pretrain_spec(load_recipe("small"), tokenizer=None)
    drawn = replace(spec, selection=replace(spec.selection, keep_ratio=(0.3, 1.0)))
    assert list(spec.problems()) == []
    assert list(drawn.problems()) == ["selection: a range of keep ratios, which is for fine-tuning"]


def test_shares_are_in_equal_steps_with_both_ends_equally_often():
    places = [(2 * number + 1) / (2 * SHARES) for number in range(SHARES)]
    assert [share_at((0.25, 1.0), place) for place in places] == [
        pytest.approx(0.25 + 0.05 * number) for number in range(SHARES)
    ]
    assert share_at((0.3, 0.7), 0.0) == 0.3
    assert share_at((0.3, 0.7), 1 - 2**-53) == 0.7
