"""Pooling by the change of tokens, and by class attention: the layer, training, checkpoints and costs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import STILL, called, json_of, killed_copy, run, same_run, small_recipe, weights
from tiny_models import grouped, randomized, tiny

import everest
from everest.config.heads import named_heads
from everest.config.recipe import load_recipe
from everest.methods.grid import TokenGrid
from everest.models.pooling import ClassAttentionPooling, mean_and_change
from everest.system.run_folder import RunFolder
from everest.system.weights_header import read_header

ATTENTION = {"pooling": "class-attention"}


@pytest.fixture(scope="module")
def recipe(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tubes left out in fine-tuning, two label heads, pooling by class attention."""
    folder = tmp_path_factory.mktemp("pooling")
    rows = [f"{clip_files}/clip{i}.mp4,{i % 3},{i % 2}\n" for i in range(4)]
    (folder / "train.csv").write_text("path,label.noun,label.verb\n" + "".join(rows))
    changes = {"num_classes: 2": "heads: {verb: 2, noun: 3}"}
    changes["model: {"] = "model: {pooling: class_attention, "
    changes["finetune: {"] = "finetune: {selection: {strategy: tube-dropout, keep_ratio: 0.75}, "
    return small_recipe(folder, folder, changes)


@pytest.fixture(scope="module")
def pretrained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    run("pretrain", "--recipe", recipe, "-o", folder, "-q")
    return folder


@pytest.fixture(scope="module")
def trained(recipe: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("finetune", "--recipe", recipe, "--init", pretrained, "-o", folder, "-q")
    return folder


# --- mean and change ----------------------------------------------------------------------------------------

GRID = TokenGrid(t=4, h=2, w=3)


def chosen_tokens(keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, K, 5) and their ids (3, K), which differ from clip to clip."""
    generator = torch.Generator().manual_seed(keep)
    ids = torch.rand(3, GRID.num_tokens, generator=generator).argsort(dim=1)[:, :keep].sort(dim=1).values
    return torch.randn(3, keep, 5, generator=generator), ids


@pytest.mark.parametrize("keep", [1, 6, 13, 24])
def test_the_change_is_the_mean_over_pairs_of_time_indices(keep: int):
    tokens, ids = chosen_tokens(keep)
    found = mean_and_change(tokens, ids, GRID)
    assert torch.equal(found[:, :5], tokens.mean(dim=1))
    for clip, row, measured in zip(tokens, ids.tolist(), found, strict=True):
        known = dict(zip(row, clip, strict=True))
        pairs = [(known[i + 6] - x).abs() for i, x in known.items() if i + 6 in known]
        change = torch.stack(pairs).mean(dim=0) if pairs else torch.zeros(5)
        torch.testing.assert_close(measured[5:10], change)
        order = sorted(range(len(pairs)), key=lambda at: -pairs[at].norm())[: math.ceil(0.3 * len(pairs))]
        later = [known[i + 6] for i in known if i + 6 in known]
        moved = [torch.stack([part[at] for at in order]).mean(dim=0) for part in (later, pairs) if order]
        torch.testing.assert_close(measured[10:], torch.cat(moved) if moved else torch.zeros(10))


def test_the_order_of_tokens_has_no_effect_and_all_tokens_give_the_difference_of_time_indices():
    tokens, ids = chosen_tokens(24)
    found, order = mean_and_change(tokens, ids, GRID), torch.randperm(24)
    torch.testing.assert_close(mean_and_change(tokens[:, order], ids[:, order], GRID), found)
    time_indices = tokens.unflatten(1, (4, 6))
    torch.testing.assert_close(found[:, 5:10], time_indices.diff(dim=1).abs().mean(dim=(1, 2)))
    still = mean_and_change(time_indices[:, :1].expand(-1, 4, -1, -1).flatten(1, 2), ids, GRID)
    assert not still[:, 5:10].any()
    assert not still[:, 15:].any()


def test_a_still_clip_has_no_change_without_positions_in_time():
    model = randomized(tiny("encoder", frames=4, tubelet=(1, 8, 8), positions="learned-separable")).eval()
    picture = torch.randn(2, 3, 1, 32, 32)
    with torch.no_grad():
        model.encoder.position.temporal.zero_()
        still = model(picture.expand(-1, -1, 4, -1, -1))
        moving = model(torch.randn(2, 3, 4, 32, 32))
    assert still.shape == (2, 96)
    for changes in (slice(24, 48), slice(72, 96)):
        assert still[:, changes].abs().max() < 1e-5 < 0.1 < moving[:, changes].abs().mean()


# --- the layer of class attention ---------------------------------------------------------------------------


def test_the_class_token_attends_once_like_plain_attention():
    torch.manual_seed(0)
    pool = ClassAttentionPooling(24, num_heads=2).eval()
    tokens, block = torch.randn(3, 10, 24), pool.block
    class_token = pool.class_token.expand(3, 1, 24)
    seen = block.norm1(torch.cat([class_token, tokens], dim=1))  # (B, 1 + K, D)
    q, k, v = (
        layer(part).unflatten(-1, (2, 12)).transpose(1, 2)
        for layer, part in ((block.attn.q, seen[:, :1]), (block.attn.k, seen), (block.attn.v, seen))
    )
    fractions = (q @ k.transpose(-2, -1) / 12**0.5).softmax(dim=-1)
    class_token = class_token + block.attn.proj((fractions @ v).transpose(1, 2).flatten(2))
    class_token = class_token + block.mlp(block.norm2(class_token))
    torch.testing.assert_close(pool(tokens), class_token[:, 0])


def test_it_learns_at_the_rate_of_the_head_and_its_token_does_not_decay():
    with torch.device("meta"):
        model = everest.create_model("vit-b", kind="classifier", num_classes=3, **ATTENTION)
    groups = grouped(model, layer_decay=0.75)
    pooling = {name: group for name, group in groups.items() if name.startswith("pool.")}
    assert {scale for _, scale in pooling.values()} == {groups["head.weight"][1]} == {1.0}
    assert groups["pool.class_token"] == groups["pool.block.norm1.weight"] == (0.0, 1.0)
    assert groups["pool.block.attn.k.weight"] == (0.05, 1.0)


# --- runs ---------------------------------------------------------------------------------------------------


def test_it_works_with_tubes_heads_and_a_pretrained_encoder(trained: Path):
    model = everest.load_model(trained / "model.safetensors")
    assert (model.pooling, model.heads) == ("class-attention", named_heads({"verb": 2, "noun": 3}))
    assert {"val_verb_top1", "val_noun_top1"} <= set(RunFolder(trained).rows()[-1])
    assert weights(trained)["pool.class_token"].any()
    settings = read_header(trained / "model.safetensors").settings
    assert settings["model"]["pooling"] == "class-attention"


def test_a_stopped_run_resumes_to_the_same_bits(recipe, pretrained, trained, tmp_path):
    killed = killed_copy(trained, tmp_path / "run")
    run("finetune", "--recipe", recipe, "--init", pretrained, "-o", killed, "-q")
    assert same_run(killed, trained)


def test_another_run_loads_its_layer_only_with_the_same_pooling(recipe: Path, trained: Path, tmp_path: Path):
    command = ["finetune", "--recipe", recipe, "--init", trained, *STILL, "-q"]
    called(*command, "-o", tmp_path / "same")
    said = called(*command, "-o", tmp_path / "mean", "--set", "model.pooling=mean").stderr
    assert "the head starts fresh: the checkpoint has class-attention pooling, the recipe mean" in said
    before, same, mean = (weights(folder) for folder in (trained, tmp_path / "same", tmp_path / "mean"))
    for name in ("pool.class_token", "pool.block.attn.k.weight", "head.weight"):
        assert (before[name] - same[name]).abs().max() < 1e-6
    assert (before["head.weight"] - mean["head.weight"]).abs().max() > 1e-4
    assert not [name for name in mean if name.startswith("pool.")]


def test_it_is_trained_with_a_frozen_encoder(recipe: Path, pretrained: Path, tmp_path: Path):
    options = ["--init", pretrained, "--set", "finetune.freeze=encoder", "-o", tmp_path / "run", "-q"]
    run("finetune", "--recipe", recipe, *options)
    state = load_file(next((tmp_path / "run" / "state").glob("*.safetensors")))
    learned = {name.split("/")[1] for name in state if name.startswith("optimizer/")}
    assert {name.split(".")[0] for name in learned} == {"norm", "head", "pool"}


def test_commands_compute_with_it(trained: Path, clip_files: Path, tmp_path: Path):
    assert set(json_of("eval -q", "-c", trained)["heads"]) == {"verb", "noun"}
    (row,) = json_of("predict -q", clip_files / "clip0.mp4", "-c", trained)
    assert set(row["heads"]) == {"verb", "noun"}
    run("extract", clip_files / "clip0.mp4", "-c", trained, "-o", tmp_path / "seen.safetensors", "-q")
    assert load_file(tmp_path / "seen.safetensors")["features"].shape == (1, 24)
    probed = json_of("probe -q", "-c", trained, "--probes", "knn,linear")
    assert set(probed["heads"]) == {"verb", "noun"}


# --- recipes and costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "epochs"), [("lvmae-128-large", 50), ("lvmae-ek100-large", 30)])
def test_the_large_recipes_have_the_values_of_the_paper(name: str, epochs: int):
    large = load_recipe(name)
    overrides = ["model.backbone=vit-l", "model.pooling=class-attention"]
    base = load_recipe(name.removesuffix("-large"), overrides=overrides)
    section, size = large.finetune, large.model.backbone_size
    assert (large.model.backbone, large.model.pooling) == ("vit-l", "class-attention")
    assert (section.epochs, section.drop_path, section.selection.keep_ratio) == (epochs, 0.2, 0.75)
    assert (size.decoder_width, size.decoder_heads) == (512, 8)
    assert replace(large, name=base.name, summary=base.summary) == base
