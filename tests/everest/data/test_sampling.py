import math
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import TWO, UNMIXED, assert_resumes_after_a_kill, everest
from small_runs import called, equal, logged, run, sets, small_recipe, weights

from everest.config.settings import DataSettings, Recipe
from everest.config.stage_settings import FinetuneSettings
from everest.data.class_balance import sampling_odds
from everest.data.clip_dataset import StepSampler
from everest.data.randomness import Purpose, generator_at
from everest.data.recipe_clips import finetune_dataset, pretrain_dataset, validation_dataset

KINDS = ("balanced", "sqrt")
CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=20)


def sampler(weights, **options) -> StepSampler:
    settings = {"samples_per_step": 4, "num_steps": 12, "samples_per_epoch": 10, "seed": 3} | options
    return StepSampler(**{"num_samples": 0 if weights is None else len(weights)} | settings, odds=weights)


def fractions(labels, weights) -> dict[object, float]:
    """The fraction of all draws that each class gets in expectation."""
    chances = weights / weights.sum()
    return {name: sum(chances[[label == name for label in labels]]) for name in set(labels)}


@given(CLASSES, st.sampled_from(KINDS))
def test_classes_have_the_same_fraction_or_one_by_the_root_of_their_samples(labels, kind):
    power = {"balanced": 0, "sqrt": 0.5}[kind]
    sizes = {name: number**power for name, number in Counter(labels).items()}
    expected = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    weights = sampling_odds(labels, kind)
    assert fractions(labels, weights) == pytest.approx(expected)
    assert sampling_odds([(label,) for label in labels], kind).tolist() == weights.tolist()


def test_of_several_classes_the_rarest_counts_and_no_class_is_a_class():
    labels = [(0,), (0, 1), (0,), (0, 0), (), ()]
    assert sampling_odds(labels, "balanced").tolist() == [1 / 4, 1, 1 / 4, 1 / 4, 1 / 2, 1 / 2]
    assert sampling_odds(labels, "sqrt").tolist() == [0.5, 1, 0.5, 0.5, 2**-0.5, 2**-0.5]
    assert sampling_odds([], "balanced").shape == (0,)


SHUFFLED = [[(0, 1), (0, 0), (0, 2), (0, 3), (0, 4)], [(1, 1), (1, 2), (1, 0), (1, 3), (1, 4)]]
TO_CHECK = [[(0, 4), (1, 4), (2, 3), (3, 4), (4, 4)], [(5, 2), (6, 4), (7, 4), (8, 1), (9, 2)]]


@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([2, 8]), st.integers(0, 20), st.integers(0, 9))
def test_shuffle_is_a_permutation_of_each_epoch_drawn_from_seed_and_epoch(number, epoch, batch, steps, seed):
    """Its last samples are left out, or its first ones repeated; a batch may be of two epochs.

    Keys have the number of the epoch, or of the pass over the samples if an epoch has several.
    """
    keys, passes = [], math.ceil(epoch / number)
    for count in range(-(-batch * steps // epoch)):
        order = generator_at(seed, Purpose.ORDER, count).permutation(number).tolist()
        repeated = [(count * passes + each, index) for each in range(passes) for index in order]
        keys += repeated[:epoch]
    settings = {"samples_per_step": batch, "num_steps": steps, "samples_per_epoch": epoch, "seed": seed}
    batches = list(StepSampler(num_samples=number, **settings))
    assert [len(keys) for keys in batches] == [batch] * steps
    assert list(chain(*batches)) == keys[: batch * steps]


@given(st.integers(1, 5), st.sampled_from([None, *KINDS]))
def test_a_batch_of_more_clips_than_samples_never_has_the_same_draw_twice(number, kind):
    weights = None if kind is None else sampling_odds([0] * number, kind)
    batches = list(sampler(weights, num_samples=number, samples_per_step=8, samples_per_epoch=8))
    keys = list(chain(*batches))
    assert len(set(keys)) == len(keys) == 96


def test_the_orders_of_a_seed_stay_the_same():
    """Recorded numbers: with other ones, a seed would not repeat its results."""
    options = {"samples_per_step": 5, "num_steps": 2, "samples_per_epoch": 5, "seed": 0}
    assert list(StepSampler(num_samples=5, **options)) == SHUFFLED
    assert list(sampler(np.array([1.0, 1, 1, 1, 4]), **options)) == TO_CHECK


@given(CLASSES, st.sampled_from([None, *KINDS]), st.sampled_from([1, 2]), st.integers(0, 12))
def test_processes_and_a_later_start_share_the_steps_of_one_process(labels, kind, accumulation, start):
    weights = None if kind is None else sampling_odds(labels, kind)
    common = {"num_samples": len(labels), "samples_per_step": 8}
    alone = list(sampler(weights, **common))
    for processes in (1, 2, 4):
        options = {**common, "num_processes": processes, "accumulation": accumulation, "start_step": start}
        samplers = [sampler(weights, **options, rank=rank) for rank in range(processes)]
        ranks = [list(order) for order in samplers]
        assert [len(order) for order in samplers] == [len(rank) for rank in ranks]
        assert {len(rank) for rank in ranks} == {(12 - start) * accumulation}
        for step, batch in enumerate(alone[start:]):
            parts = [part for rank in ranks for part in rank[step * accumulation :][:accumulation]]
            assert list(chain(*parts)) == batch


@pytest.fixture
def unequal(tmp_path) -> Recipe:
    """Four videos, three of one class."""
    rows = []
    for name, label in zip("abcd", (0, 0, 2, 0), strict=True):
        (tmp_path / f"{name}.mp4").touch()
        rows.append(f"{name}.mp4,{label}\n")
    (tmp_path / "train.csv").write_text("".join(rows))
    (tmp_path / "val.csv").write_text(rows[0])
    data = DataSettings(root=str(tmp_path), train="train.csv", val="val.csv", num_classes=3)
    return Recipe(name="here", data=data)


def test_the_sampler_of_a_recipe_weighs_the_training_videos_only(unequal):
    assert finetune_dataset(unequal)[0].sampling_odds is None
    balanced = replace(unequal, finetune=FinetuneSettings(sampler="balanced"))
    dataset, classes = finetune_dataset(balanced)
    assert dataset.sampling_odds.tolist() == [1 / 3, 1 / 3, 1, 1 / 3]
    assert validation_dataset(balanced, classes).sampling_odds is None
    assert pretrain_dataset(balanced).sampling_odds is None


def test_the_first_of_several_heads_is_balanced(unequal, tmp_path):
    rows = "path,label.verb,label.noun\na.mp4,0,1\nb.mp4,1,1\nc.mp4,1,0\n"
    (tmp_path / "train.csv").write_text(rows)
    heads = replace(unequal.data, num_classes=None, heads={"noun": 2, "verb": 2}, val=None)
    dataset, _ = finetune_dataset(Recipe(name="x", data=heads, finetune=FinetuneSettings(sampler="sqrt")))
    assert dataset.sampling_odds.tolist() == [2**-0.5, 2**-0.5, 1]


COMMAND = ["finetune", "--init", "none", "-q"]
STILL = sets(*UNMIXED, "finetune.base_lr=0.01")
BALANCED = sets("finetune.sampler=balanced")


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """A recipe of four videos, three of the first class."""
    rows = [f"{clip_files}/clip{i}.mp4,{int(i == 3)}\n" for i in range(4)]
    (tmp_path / "train.csv").write_text("".join(rows))
    (tmp_path / "val.csv").write_text(rows[0])
    return small_recipe(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_killed_balanced_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    steps = sets("finetune.steps=24", "finetune.batch_size=6")
    assert_resumes_after_a_kill(recipe, [*COMMAND, *steps, *BALANCED], tmp_path, rows=9)
    run(*COMMAND, *steps, "--recipe", recipe, "-o", tmp_path / "shuffle")
    assert not equal(weights(tmp_path / "shuffle"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_two_processes_use_the_samples_of_one(recipe: Path, tmp_path: Path):
    command = [*COMMAND, *STILL, "--recipe", recipe]
    run(*command, *BALANCED, "-o", tmp_path / "one", "--gpus", "cpu")
    run(*command, "-o", tmp_path / "shuffle", "--gpus", "cpu")
    everest(*command, *BALANCED, "-o", tmp_path / "two", *TWO)
    one, two, shuffle = (logged(tmp_path / name, "grad_norm") for name in ("one", "two", "shuffle"))
    assert two == pytest.approx(one, rel=1e-4)
    assert shuffle != pytest.approx(one, rel=1e-2)


def test_a_class_without_a_validation_video_is_reported_once(recipe: Path):
    command = ["finetune --init none --dry-run", "--recipe", recipe]
    text = "data.val has no video of 1 of 2 classes: '1'"
    assert called(*command, "--set", "data.val=val.csv").stderr.count(text) == 1
    assert "has no video" not in called(*command).stderr
    assert "has no video" not in called(*command, "--set", "data.val=null").stderr
