"""The tubelet embedding and the position tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, save_model, tiny

import everest
from everest.checkpoints.load import open_model
from everest.config.settings import ModelSettings
from everest.methods.grid import TokenGrid, patchify
from everest.methods.importance import embedding_change
from everest.methods.strategies import RandomSpaceTime
from everest.methods.targets import PixelTargets
from everest.models.mae import AutoencoderSpec
from everest.models.positions import LearnedPositions, fit_learned_positions, position_table
from everest.models.vit import TubeletEmbedding

# EVEREST Table 15, to its digit: millions of parameters in pre-training and with 51 classes.
TABLE_15 = {1: (94.2, 86.3), 2: (102.5, 94.6), 3: (97.8, 89.9)}


@pytest.mark.parametrize("layers", TABLE_15)
@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_more_convolutions_have_the_parameters_of_the_paper(layers: int, kind: str):
    with torch.device("meta"):
        classes = 51 if kind == "classifier" else None
        model = everest.create_model("vit-b", kind=kind, num_classes=classes, embedding_layers=layers)
    millions = round(sum(p.numel() for p in model.parameters()) / 1e6, 1)
    assert millions == TABLE_15[layers][kind == "classifier"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_importance_is_the_distance_of_embeddings_which_are_those_of_the_whole_clip(layers: int):
    torch.manual_seed(0)
    embed = TubeletEmbedding(6, (2, 8, 8), layers=layers)
    frames = torch.randn(2, 3, 6, 16, 16)
    tokens = embed(patchify(frames, (2, 8, 8)))  # (B, N, D)
    torch.testing.assert_close(tokens, embed.proj(frames).flatten(2).mT)
    tokens = tokens.unflatten(1, (3, 4))  # (B, time indices, positions, D)
    expected = (tokens[:, 1:] - tokens[:, :-1]).norm(dim=-1)  # (B, 2, 4)
    measured = embedding_change(frames, embed).unflatten(1, (3, 4))
    torch.testing.assert_close(measured[:, 1:], expected)
    assert torch.equal(measured[:, 0], measured[:, 1])


def sha256(table: torch.Tensor) -> str:
    return hashlib.sha256(table.numpy().astype("<f4").tobytes()).hexdigest()


def test_separable_positions_are_those_that_mvd_stores(golden: Callable[[str], Path]):
    tables = json.loads(golden("token_counts.json").read_text())["mvd_3d_sincos"]["tables"]
    for name, expected in tables.items():
        shape, width = name.split("_")
        t, h, w = map(int, shape.split("x"))
        table = position_table("separable", TokenGrid(t=t, h=h, w=w), int(width))
        assert table.double().sum().item() == pytest.approx(expected["sum"], rel=1e-6)
        assert table.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-6)
        quarter = int(width) // 4
        assert table[1, :6].tolist() == pytest.approx(expected["row1_first6"], abs=1e-6)
        quarter_row = table[1, quarter : quarter + len(expected["row1_at_quarter"])].tolist()
        assert quarter_row == pytest.approx(expected["row1_at_quarter"], abs=1e-6)
        assert sha256(table) == expected["sha256_float32_le"]


# --- learned positions --------------------------------------------------------------------------------------


def fitted(old: TokenGrid, new: TokenGrid, spatial: torch.Tensor, temporal: torch.Tensor) -> LearnedPositions:
    """Learned positions of `old`, fitted to `new`."""
    other = torch.rand(3, 3)
    tensors = {"encoder.position.spatial": spatial, "encoder.position.temporal": temporal, "other": other}
    found = fit_learned_positions(tensors, old, new)
    assert found["other"] is other
    positions = LearnedPositions(new, spatial.size(-1))
    positions.load_state_dict({name: found[f"encoder.position.{name}"] for name in ("spatial", "temporal")})
    return positions


def test_time_indices_are_interpolated_linearly():
    """From 2 time indices to 4: their centers are at -1/4, 1/4, 3/4 and 5/4 of the way, the ends are held."""
    temporal = torch.tensor([[[0.0, 8.0], [4.0, 0.0]]])
    old, new = TokenGrid(t=2, h=1, w=1), TokenGrid(t=4, h=1, w=1)
    longer = fitted(old, new, torch.zeros(1, 1, 2), temporal)
    assert longer.temporal.tolist() == [[[0, 8], [1, 6], [3, 2], [4, 0]]]
    assert fitted(new, old, torch.zeros(1, 1, 2), longer.temporal).temporal.tolist() == [[[0.5, 7], [3.5, 1]]]


def test_a_model_of_other_clips_has_interpolated_positions(tmp_path: Path):
    options = {"positions": "learned-separable", "class_token": True}
    model = tiny("pretrain", **options)
    grid = model.encoder.grid
    settings = ModelSettings(backbone="vit-tiny", tubelet=(2, 8, 8), **TINY, **options)
    chosen = {"selection": RandomSpaceTime(), "target": PixelTargets()}
    spec = AutoencoderSpec(frames=8, size=(32, 32), model=settings, **chosen)
    file = save_model(tmp_path / "x.safetensors", spec, model)
    opened = open_model(file, frames=12, size=(48, 40)).transformer
    expected = fit_learned_positions(model.state_dict(), grid, opened.encoder.grid)
    assert opened.encoder.grid == TokenGrid(t=6, h=6, w=5)
    found = opened.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["decoder.position.spatial"].shape == (1, 30, 16)
