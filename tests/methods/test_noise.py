"""The random numbers of a clip: the loader draws as many as the model splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everest.checkpoints.frozen import spec_of_pretraining
from everest.config.recipe import load_recipe
from everest.data.recipe_clips import pretrain_clips
from everest.methods.grid import NoiseLayout, TokenGrid


def test_the_numbers_are_those_of_tokens_then_slices_then_the_camera():
    grid, candidates = TokenGrid(t=2, h=2, w=2), TokenGrid(t=3, h=2, w=2)
    layout = NoiseLayout.of(grid, candidates, camera=0.5)
    noise = torch.rand(2, 12 + 3 + 5)
    parts = layout.split(noise)
    assert [part.size(1) for part in parts] == [12, 3, 5]
    assert torch.equal(torch.cat(parts, dim=1), noise)
    assert NoiseLayout.of(grid, grid, camera=0).total == 8
    for other in (noise[:, :-1], torch.cat([noise, noise], dim=1)):
        with pytest.raises(ValueError, match=r"numbers a clip, not 20 \(12 for tokens, 3 for slices, 5 for"):
            layout.split(other)


@pytest.mark.parametrize(
    "override",
    ["camera_motion=0.5", "frame_selection.alpha=1.5", "objective=views", "selection={strategy: tube}"],
)
def test_the_loader_draws_the_numbers_that_the_model_splits(recipe: Path, override: str):
    loaded = load_recipe(recipe, overrides=[f"pretrain.{override}"])
    model = spec_of_pretraining(loaded).build()
    assert pretrain_clips(loaded).num_noise == model.noise_layout.total  # pyright: ignore
