"""The tubelet embedding and the position tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import everest
from everest.errors import RecipeError
from everest.methods.grid import TokenGrid, patchify
from everest.methods.importance import change_importance
from everest.models.embedding import TubeletEmbedding, separable_positions, sinusoid_positions

# EVEREST Table 15, to its digit: millions of parameters in pre-training and with 51 classes.
TABLE_15 = {1: (94.2, 86.3), 2: (102.5, 94.6), 3: (97.8, 89.9)}


@pytest.mark.parametrize("layers", TABLE_15)
@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_more_convolutions_have_the_parameters_of_the_paper(layers: int, kind: str):
    with torch.device("meta"):
        model = everest.create_model("vit-b", kind=kind, num_classes=51, embedding_layers=layers)
    millions = round(sum(p.numel() for p in model.parameters()) / 1e6, 1)
    assert millions == TABLE_15[layers][kind == "classifier"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_tokens_are_those_of_the_convolutions_on_the_whole_clip(layers: int):
    torch.manual_seed(0)
    embed = TubeletEmbedding(6, (2, 8, 8), layers=layers)
    frames = torch.randn(2, 3, 4, 16, 24)
    whole = embed.proj(frames).flatten(2).mT  # (B, N, D)
    torch.testing.assert_close(embed(patchify(frames, (2, 8, 8))), whole)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_importance_is_the_distance_of_embeddings_at_any_depth(layers: int):
    torch.manual_seed(0)
    embed = TubeletEmbedding(6, (2, 8, 8), layers=layers)
    frames = torch.randn(2, 3, 6, 16, 16)
    tokens = embed(patchify(frames, (2, 8, 8))).unflatten(1, (3, 4))  # (B, slices, places, D)
    expected = (tokens[:, 1:] - tokens[:, :-1]).norm(dim=-1)  # (B, 2, 4)
    measured = change_importance(frames, embed, (2, 8, 8)).unflatten(1, (3, 4))
    torch.testing.assert_close(measured[:, 1:], expected)
    assert torch.equal(measured[:, 0], measured[:, 1])


def test_a_tubelet_that_does_not_divide_into_the_steps_is_refused():
    with pytest.raises(RecipeError, match="not a tubelet of 6 x 6"):
        TubeletEmbedding(6, (2, 6, 6), layers=2)


def sha256(table: torch.Tensor) -> str:
    return hashlib.sha256(table.numpy().astype("<f4").tobytes()).hexdigest()


def test_separable_positions_are_those_that_mvd_stores(golden: Callable[[str], Path]):
    tables = json.loads(golden("token_counts.json").read_text())["mvd_3d_sincos"]["tables"]
    for name, expected in tables.items():
        shape, width = name.split("_")
        t, h, w = map(int, shape.split("x"))
        table = separable_positions(TokenGrid(t=t, h=h, w=w), int(width))
        assert table.double().sum().item() == pytest.approx(expected["sum"], rel=1e-6)
        assert table.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-6)
        quarter = int(width) // 4
        assert table[1, :6].tolist() == pytest.approx(expected["row1_first6"], abs=1e-6)
        quarter_row = table[1, quarter : quarter + len(expected["row1_at_quarter"])].tolist()
        assert quarter_row == pytest.approx(expected["row1_at_quarter"], abs=1e-6)
        assert sha256(table) == expected["sha256_float32_le"]


def test_separable_positions_of_a_short_clip_are_the_first_of_a_long_one():
    short = separable_positions(TokenGrid(t=8, h=3, w=5), 48)
    assert torch.equal(separable_positions(TokenGrid(t=64, h=3, w=5), 48)[: len(short)], short)
    flat = sinusoid_positions(24, 16)
    assert torch.equal(sinusoid_positions(240, 16)[:24], flat)
