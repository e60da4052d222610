from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.data.bad_videos import BadVideos
from everest.errors import DataError, RecipeError
from everest.train.plan import plan_stage

STAGE = PretrainSettings(batch_size=192, epochs=4, warmup_epochs=2, base_lr=1e-3, min_lr=1e-5)


def test_batch_is_split_over_processes_and_passes():
    plan = plan_stage(STAGE, num_videos=9537, processes=8, largest_micro_batch=10)
    assert (plan.micro_batch, plan.accumulation) == (8, 3)
    assert (plan.checkpoint_steps, plan.steps) == (49, 196)
    assert plan.peak_lr == pytest.approx(1e-3 * 192 / 256)


@given(
    processes=st.sampled_from([1, 2, 3, 4, 6, 8]),
    largest=st.integers(1, 300),
    views=st.sampled_from([1, 2, 4]),
)
def test_passes_of_all_processes_add_up_to_the_batch(processes, largest, views):
    stage = replace(STAGE, views_per_decode=views)
    plan = plan_stage(stage, num_videos=1000, processes=processes, largest_micro_batch=largest)
    assert plan.micro_batch * plan.accumulation * plan.processes == 192
    assert plan.micro_batch % views == 0
    assert plan.micro_batch <= max(largest, views)


def test_views_of_one_decode_count_as_clips():
    plan = plan_stage(
        replace(STAGE, views_per_decode=4), num_videos=480, processes=1, largest_micro_batch=192
    )
    assert (plan.videos_per_step, plan.checkpoint_steps) == (48, 10)


def test_a_small_set_has_one_step_an_epoch():
    assert plan_stage(STAGE, num_videos=10, processes=1, largest_micro_batch=8).steps == 4


@given(videos=st.integers(1, 500), steps=st.integers(1, 3000), batch=st.sampled_from([1, 10, 32, 192]))
def test_a_budget_in_steps_counts_every_video_equally_often(videos: int, steps: int, batch: int):
    stage = replace(STAGE, epochs=None, steps=steps, batch_size=batch)
    plan = plan_stage(stage, num_videos=videos, processes=1, largest_micro_batch=batch)
    assert plan.steps == steps
    assert plan.warmup_steps == steps // 20
    assert plan.epochs == (steps - 1) * batch // videos + 1
    assert plan.checkpoint_steps * batch >= videos  # a checkpoint follows a pass over all videos at least
    assert steps / plan.checkpoint_steps <= 40
    assert plan.videos_per_epoch == videos


def test_the_warm_up_of_a_budget_in_steps_can_be_set():
    stage = replace(STAGE, epochs=None, steps=100, warmup_steps=7)
    plan = plan_stage(stage, num_videos=10, processes=1, largest_micro_batch=192)
    assert [plan.lr(6), plan.lr(7)] == pytest.approx([plan.peak_lr, plan.peak_lr])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(RecipeError, match="batch_size 192 does not divide over 5 processes"):
        plan_stage(STAGE, num_videos=1000, processes=5, largest_micro_batch=8)


def test_rate_rises_to_the_peak_and_falls_towards_the_minimum():
    plan = plan_stage(STAGE, num_videos=1920, processes=1, largest_micro_batch=192)
    rates = [plan.lr(step) for step in range(plan.steps)]
    assert rates[0] == 0
    assert rates[19] == rates[20] == plan.peak_lr == max(rates)
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert 1e-5 * 192 / 256 < rates[-1] < 1e-4


def test_bad_videos_are_named_once_and_end_the_run_above_the_share():
    bad = BadVideos(max_bad=0.1)
    tries = [("a", "empty file")]
    assert bad.add(requested=20, failed=[tries]) == [
        "cannot read a: empty file; another video takes its place"
    ]
    assert bad.add(requested=20, failed=[tries] * 3) == []
    bad.check(any_failed=True)  # four are not too many, whatever the share
    bad.add(requested=5, failed=[[("b", "no video stream"), ("a", "empty file")]])
    with pytest.raises(DataError, match=r"5 of 45 samples could not be read, more than data.max_bad=0.1"):
        bad.check(any_failed=True)
    bad.check(any_failed=False)  # nothing new: a repaired run can resume


def test_a_sample_counts_once_however_many_tries_it_took():
    bad = BadVideos(max_bad=1.0)
    bad.add(requested=5, failed=[[("a", "x"), ("b", "y"), ("c", "z")]] * 5)
    assert bad.counts() == {"asked": 5, "bad": 5}
    bad.check(any_failed=True)


def test_counts_of_bad_videos_survive_a_resume():
    bad = BadVideos(max_bad=0.5)
    bad.add(requested=8, failed=[[("a", "x")]])
    again = BadVideos(max_bad=0.5)
    again.restore(bad.counts(), bad.reasons)
    assert again.add(requested=8, failed=[[("a", "x")]]) == []
    assert again.counts() == {"asked": 16, "bad": 2}


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 100])
def test_mixup_gets_pairs_in_every_pass(largest):
    stage = FinetuneSettings(batch_size=12, mixup=0.8)
    assert plan_stage(stage, num_videos=100, processes=1, largest_micro_batch=largest).micro_batch % 2 == 0
    with pytest.raises(RecipeError, match="in pairs"):
        plan_stage(stage, num_videos=100, processes=4, largest_micro_batch=largest)
