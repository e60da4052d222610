"""The size of a model by the time that one CPU thread needs for a clip."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everest.checkpoints.describe import settings_from
from everest.config.heads import Head
from everest.models.cost import total_macs
from everest.models.spec import classifier_spec
from everest.suggest.data_section import data_section
from everest.suggest.latency import SIZES, fit_latency, network_ms
from everest.suggest.suggestion import Suggestion, suggest_recipe


@pytest.fixture
def suggestion(clip_files: Path, tmp_path: Path) -> Suggestion:
    section = data_section(str(clip_files))
    return suggest_recipe(section, "cpu", purpose="scratch", output=tmp_path / "r.yaml")


def test_each_size_costs_less_than_the_one_before(suggestion: Suggestion):
    costs = []
    for size in SIZES:
        sized = replace(suggestion, size=size, overrides=[f"data.size={size.side}"])
        costs.append(total_macs(classifier_spec(sized.recipe, (Head(outputs=4),))))
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(SIZES)


def test_the_largest_size_that_is_fast_enough_is_taken_and_the_test_has_one_view(suggestion: Suggestion):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    fitted, measured = fit_latency(suggestion, 1e9)
    assert (fitted.size, 0 < measured < 1e9) == (SIZES[-2], True)  # that of a CPU, no larger
    smallest, measured = fit_latency(suggestion, 1e-6)
    assert (smallest.size, measured > 1e-6) == (SIZES[-1], True)
    for each in (fitted, smallest):
        assert (each.recipe.eval.clips, each.recipe.eval.crops) == (1, 1)
        assert "ms a clip on a CPU" in each.text
    assert "the largest that was measured to need at most" in fitted.text
    assert "the smallest, measured to need more than" in smallest.text
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_clips_of_image_weights_have_as_many_frames_as_the_time_allows(
    suggestion: Suggestion, image_file: Path
):
    start = settings_from(f"timm:vit_tiny_patch16_224={image_file}", on_cpu=True)
    suggestion = replace(suggestion, start=start)
    whole, measured = fit_latency(suggestion, 1e9)
    assert whole.recipe.data.frames == 8
    fewer, _ = fit_latency(suggestion, 0.7 * measured)
    assert fewer.recipe.data.frames == 4
    fewest, _ = fit_latency(suggestion, 1e-6)
    assert (fewest.recipe.data.frames, fewest.is_fast) == (2, False)
    assert "as many as --latency allows, or 2" in fewest.text
    named, _ = fit_latency(replace(suggestion, overrides=["data.frames=6"]), 1e-6)
    assert named.recipe.data.frames == 6


def test_a_model_stays_where_it_was(suggestion: Suggestion):
    model = classifier_spec(suggestion.recipe, (Head(outputs=2),)).build()
    device = model.device
    assert network_ms(model) > 0
    assert model.device == device
