"""The measures of a tokenizer, on cases that can be computed by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from everest.tokenizer.fsq import FSQ
from everest.tokenizer.measures import (
    change_of_tokens,
    change_ratio,
    codebook_use,
    highest,
    mean_overlap,
    psnr,
    rank_correlation,
    score_entropy,
    slice_shares,
)
from everest.tokenizer.report import codebook_warnings, scorer_warnings


def test_an_error_of_a_tenth_is_20_db():
    frames = torch.full((2, 3, 4, 2, 2), 0.5)
    assert psnr(frames + 0.1, frames).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_pixels_beyond_white_and_black_count_as_these():
    assert psnr(torch.full((1, 3, 2, 2, 2), 7.0), torch.ones(1, 3, 2, 2, 2)).item() == pytest.approx(100)


def test_change_is_measured_against_the_frame_before():
    frames = torch.zeros(1, 3, 4, 4, 4)
    frames[:, :, 2:, :2, 2:] = 0.5  # the upper right token lights up at the start of the second slice
    change = change_of_tokens(frames, (2, 2, 2))
    assert change.tolist() == [[[[0, 0], [0, 0]], [[0, 0.25], [0, 0]]]]  # in one of its two frames


def test_a_choice_by_chance_has_ratio_1_and_one_by_change_more():
    change = torch.tensor([[1.0, 0, 0, 3]])
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert change_ratio(everything, change) == 1
    assert change_ratio(highest(change, 0.25), change) == 3
    assert change_ratio(highest(change, 0.25), torch.zeros(1, 4)) == 1  # nothing moves at all


def test_ranks_are_those_of_spearman_with_ties():
    one = torch.tensor([[1.0, 2, 2, 9, 5], [3, 3, 1, 0, 0]])
    other = torch.tensor([[0.0, 5, 5, 1, 2], [1, 2, 3, 3, 9]])
    expected = sum(spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)) / 2
    assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-6)


def test_a_clip_where_nothing_changes_correlates_with_nothing():
    assert rank_correlation(torch.arange(4.0)[None], torch.ones(1, 4)) == 0


def test_overlap_is_intersection_over_union_of_pairs():
    kept = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]).bool()
    assert mean_overlap(kept) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert mean_overlap(kept[:1]) == 0


def test_shares_of_slices_sum_to_1():
    kept = torch.tensor([[1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]).bool()
    assert slice_shares(kept, 3) == pytest.approx([0.75, 0, 0.25])


def test_entropy_is_1_for_equal_scores_and_0_for_one():
    assert score_entropy(torch.ones(2, 8)) == pytest.approx(1)
    assert score_entropy(torch.eye(8)[:1]) == pytest.approx(0)


def test_perplexity_counts_equally_frequent_codes():
    quantizer = FSQ([4, 2])
    use = codebook_use(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), quantizer)
    assert use["perplexity"] == pytest.approx(4)
    assert use["perplexity_share"] == pytest.approx(0.5)  # of 8 codes and as many tokens
    assert (use["used"], use["tokens"], use["least_level"]) == (4, 8, 0)  # the second level of the second


HEALTHY = {
    "change": {"scorer": {"ratio": 3.0}, "frame_difference": {"ratio": 3.6}},
    "overlap": {"scorer": 0.16, "frame_difference": 0.16},
    "slice_shares": [1 / 7] * 7,
    "codebook": {"perplexity": 3600, "perplexity_share": 0.5, "least_level": 0.004},
}


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("slice_shares", [0.02] * 5 + [0.0, 0.9], "90% of the kept tokens are in slice 8 of 8"),
        ("overlap", {"scorer": 0.45, "frame_difference": 0.16}, "keep the same positions"),
        ("change", {"scorer": {"ratio": 1.0}, "frame_difference": {"ratio": 3.6}}, "change 1.0 times"),
        ("codebook", {"perplexity": 9, "perplexity_share": 0.01, "least_level": 0.1}, "a perplexity of 9"),
        ("codebook", {"perplexity": 9, "perplexity_share": 0.5, "least_level": 0.0}, "a level of the codes"),
    ],
)
def test_each_sign_of_a_collapse_is_reported(key: str, value: object, warning: str):
    warnings = codebook_warnings if key == "codebook" else scorer_warnings
    assert list(warnings(HEALTHY)) == []
    assert [warning in text for text in warnings({**HEALTHY, key: value})] == [True]
