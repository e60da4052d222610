"""Finite scalar quantization: every code is reached, codes match values, gradients pass."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from everest.tokenizer.fsq import FSQ

levels = st.lists(st.integers(2, 9), min_size=1, max_size=6)
few_codes = levels.filter(lambda counts: math.prod(counts) <= 2000)


def vectors(counts: list[int], seed: int, size: float) -> torch.Tensor:
    return size * torch.randn(64, len(counts), generator=torch.Generator().manual_seed(seed))


@given(counts=levels, seed=st.integers(0, 99), size=st.floats(0.01, 100))
def test_a_code_stands_for_the_values_it_came_with(counts, seed, size):
    quantizer = FSQ(counts)
    values, codes = quantizer(vectors(counts, seed, size))
    assert codes.min() >= 0
    assert codes.max() < quantizer.num_codes
    assert torch.equal(quantizer.decode(codes), values)
    assert values.abs().max() <= 1


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


@given(counts=levels)
def test_zero_is_a_code_like_any_other(counts):
    quantizer = FSQ(counts)
    values, codes = quantizer(torch.zeros(1, len(counts)))
    assert values.tolist() == [[0.0] * len(counts)]
    assert quantizer.decode(codes).tolist() == values.tolist()


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


@pytest.mark.parametrize("count", [1000, 1001, 1024, 4097, 65535, 65536])
def test_many_levels_are_all_reached_and_none_outside_of_the_range(count):
    quantizer = FSQ([count, 64])
    reach, offset = quantizer.reach[0].double(), quantizer.offset[0].double()
    levels = torch.arange(count) - count // 2
    points = torch.zeros(count + 2, 2)
    points[:count, 0] = torch.atanh((levels + offset) / reach) - torch.atanh(offset / reach)
    points[count:, 0] = torch.tensor([-1e4, 1e4])
    values, codes = quantizer(points)
    assert quantizer.digits(codes).tolist() == [[level, 32] for level in [*range(count), 0, count - 1]]
    assert values.abs().max() <= 1
    assert torch.equal(quantizer.decode(codes), values)


def test_values_keep_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, codes = FSQ([8] * 6)(torch.randn(5, 6).bfloat16())
    assert values.dtype == torch.float32
    assert torch.equal(FSQ([8] * 6).decode(codes), values)


@pytest.mark.parametrize("counts", [[], [1], [8, 0]])
def test_fewer_than_two_levels_are_refused(counts):
    with pytest.raises(ValueError, match="levels must be numbers from 2"):
        FSQ(counts)
