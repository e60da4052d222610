import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from everest.tokenizer.layers import FSQ
from everest.tokenizer.report import (
    codebook_warnings,
    compute_report_metrics,
    psnr,
    rank_correlation,
    scorer_warnings,
)


def test_an_error_of_a_tenth_is_20_db_and_pixels_beyond_white_and_black_count_as_these():
    frames = torch.full((2, 3, 4, 2, 2), 0.5)
    assert psnr(frames + 0.1, frames).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert psnr(torch.full((1, 3, 2, 2, 2), 7.0), torch.ones(1, 3, 2, 2, 2)).item() == pytest.approx(100)


def test_figures_by_hand_of_the_change_and_the_time_indices_of_what_is_kept():
    change = torch.tensor([[1.0, 0, 0, 3], [1.0, 0, 0, 3]])
    clips = {
        **dict.fromkeys(("own", "random", "all"), torch.tensor([20.0, 30])),
        "kept": torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool(),
        "scores": change,
        "untrained": torch.tensor([[9.0, 1, 2, 3]] * 2),
        "change": change,
        "codes": torch.tensor([[0, 1, 2, 3]] * 2),
    }
    metrics = compute_report_metrics(clips, num_time_indices=2, quantizer=FSQ([4, 2]))
    assert {name: each["ratio"] for name, each in metrics["change"].items()} == {
        **{"scorer": 3, "untrained": 1, "frame_difference": 3}
    }
    assert metrics["time_index_fractions"] == pytest.approx([0.75, 0.25])
    assert metrics["psnr"] == {"own": 25, "random": 25, "all": 25}
    still = compute_report_metrics(
        {**clips, "change": torch.zeros(2, 4)}, num_time_indices=2, quantizer=FSQ([4, 2])
    )
    assert still["change"]["scorer"]["ratio"] == 1  # nothing moves at all
    # Four equally frequent codes, of 8 codes and as many tokens.
    assert metrics["codebook"] == {
        **{"tokens": 8, "used": 4, "perplexity": pytest.approx(4), "perplexity_fraction": pytest.approx(0.5)}
    }


def test_ranks_are_those_of_spearman_with_ties_and_no_change_correlates_with_nothing():
    one = torch.tensor([[1.0, 2, 2, 9, 5], [3, 3, 1, 0, 0]])
    other = torch.tensor([[0.0, 5, 5, 1, 2], [1, 2, 3, 3, 9]])
    expected = sum(spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)) / 2
    assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(torch.arange(4.0)[None], torch.ones(1, 4)) == 0


HEALTHY = {
    "change": {"scorer": {"ratio": 3.0}, "frame_difference": {"ratio": 3.6}},
    "overlap": {"scorer": 0.16, "frame_difference": 0.16},
    "time_index_fractions": [1 / 7] * 7,
    "codebook": {"perplexity": 3600, "perplexity_fraction": 0.5},
}


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("time_index_fractions", [0.02] * 5 + [0.0, 0.9], "90% of the kept tokens are at time index 8 of 8"),
        ("overlap", {"scorer": 0.45, "frame_difference": 0.16}, "keep the same positions"),
        ("change", {"scorer": {"ratio": 1.0}, "frame_difference": {"ratio": 3.6}}, "change 1.0 times"),
        ("codebook", {"perplexity": 9, "perplexity_fraction": 0.01}, "a perplexity of 9"),
    ],
)
def test_each_sign_of_a_collapse_is_reported(key: str, value: object, warning: str):
    warnings = codebook_warnings if key == "codebook" else scorer_warnings
    assert list(warnings(HEALTHY)) == []
    assert [warning in text for text in warnings({**HEALTHY, key: value})] == [True]


levels = st.lists(st.integers(2, 9), min_size=1, max_size=6)
few_codes = levels.filter(lambda counts: math.prod(counts) <= 2000)


def vectors(counts: list[int], seed: int, size: float) -> torch.Tensor:
    return size * torch.randn(64, len(counts), generator=torch.Generator().manual_seed(seed))


@given(counts=levels, seed=st.integers(0, 99), size=st.floats(0.01, 100))
def test_a_code_stands_for_the_values_it_came_with_and_zero_is_one_of_them(counts, seed, size):
    quantizer = FSQ(counts)
    values, codes = quantizer(torch.cat([vectors(counts, seed, size), torch.zeros(1, len(counts))]))
    assert codes.min() >= 0
    assert codes.max() < quantizer.num_codes
    assert torch.equal(quantizer.decode(codes), values)
    assert values.abs().max() <= 1
    assert not values[-1].any()


@given(counts=few_codes)
def test_every_code_is_reached_and_none_twice(counts):
    quantizer = FSQ(counts)
    line = torch.linspace(-6, 6, 241)
    of_dimension = []  # for each dimension, a point for each of its levels
    for dim, count in enumerate(counts):
        points = torch.zeros(len(line), len(counts))
        points[:, dim] = line
        digits = quantizer.digits(quantizer(points)[1])[:, dim]
        assert digits.unique().tolist() == list(range(count))
        of_dimension.append([line[digits == level][0].item() for level in range(count)])
    every = torch.tensor(list(itertools.product(*of_dimension)))
    assert quantizer(every)[1].sort().values.tolist() == list(range(quantizer.num_codes))


def test_eight_levels_are_not_symmetric_and_zero_has_the_number_of_the_specification():
    quantizer = FSQ([8] * 6)
    assert quantizer.num_codes == 2**18
    assert quantizer(torch.zeros(6))[1].item() == 149_796
    values, _ = quantizer(torch.linspace(-9, 9, 999)[:, None].expand(-1, 6))
    assert values[:, 0].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]


@given(counts=levels, seed=st.integers(0, 99))
def test_the_gradient_passes_the_rounding_as_if_it_were_not_there(counts, seed):
    quantizer = FSQ(counts)
    z = vectors(counts, seed, 1.0).requires_grad_()
    weights = vectors(counts, seed + 1, 1.0)
    rounded = torch.autograd.grad((quantizer(z)[0] * weights).sum(), z)[0]
    smooth = torch.autograd.grad((quantizer.bound(z) * weights).sum(), z)[0]
    assert torch.equal(rounded, smooth)
    assert (rounded != 0).any()


def test_values_keep_float32_under_autocast_and_fewer_than_two_levels_are_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, codes = FSQ([8] * 6)(torch.randn(5, 6).bfloat16())
    assert values.dtype == torch.float32
    assert torch.equal(FSQ([8] * 6).decode(codes), values)
    for counts in ([], [1], [8, 0]):
        with pytest.raises(ValueError, match="levels must be numbers from 2"):
            FSQ(counts)
