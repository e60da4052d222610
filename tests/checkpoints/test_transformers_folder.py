"""Folders of transformers as checkpoints: their links, and the files next to the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import tiny
from hub_cache import cached
from safetensors.torch import save_file

from everest.checkpoints.init import find_init, read_start
from everest.errors import RecipeError

CONFIG = {"model_type": "videomae", "num_attention_heads": 3, "num_frames": 4, "image_size": 32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As transformers saves a classifier."""
    path = tmp_path / "videomae-tiny"
    path.mkdir()
    save_file(tiny("hf_videomae_classification_base"), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def in_parts(folder: Path) -> None:
    """Divide the weights of a folder into two files and an index."""
    state, parts = tiny("hf_videomae_classification_base"), {}
    for i, name in enumerate(sorted(state)):
        parts[name] = f"model-{i % 2}.safetensors"
    for part in set(parts.values()):
        save_file({name: state[name] for name in state if parts[name] == part}, folder / part)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "in parts"])
def test_a_run_starts_from_the_links_of_a_cache(folder: Path, tmp_path: Path, parts: bool):
    if parts:
        in_parts(folder)
    snapshot = cached(tmp_path / "hub", "someone/videomae-tiny", folder)
    names = [snapshot] if parts else [snapshot, snapshot / "model.safetensors"]
    for name in names:
        start = read_start(find_init(name, output=None, overwrite=False), resumed=None)
        assert start.weights is not None
        assert torch.equal(
            start.weights.tensors["head.weight"], tiny("hf_videomae_classification_base")["classifier.weight"]
        )
        assert (start.saved.frames, start.saved.size) == (4, (32, 32))
        assert start.origin["family"] == "transformers"
        assert Path(start.origin["file"]).parent == snapshot


def test_the_weights_of_a_run_are_recognized_behind_a_link(folder: Path, tmp_path: Path):
    (tmp_path / "link.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(RecipeError, match="holds the weights of --init"):
        find_init(tmp_path / "link.safetensors", output=folder, overwrite=True)
