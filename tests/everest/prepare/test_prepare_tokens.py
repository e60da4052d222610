import csv
import json
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from processes import kill_when, stop_after
from small_runs import called, metrics, same_run, sets

from everest.config.recipe import load_recipe
from everest.data.recipe_clips import pretrain_dataset
from everest.errors import CheckpointError
from everest.system.weights import Weights
from everest.tokenizer.cache import INDEX, TokenCache
from everest.tokenizer.spec import tokenizer_spec

RECIPE = """
summary: small enough for a test
data: {root: "ROOT", frames: 8, size: 32, num_classes: 2}
model: {backbone: vit-tiny, tubelet: [2, 8, 8], width: 24, depth: 1, heads: 2, decoder_width: 16,
        decoder_heads: 2, decoder_depth: 1}
train: {workers: 0, micro_batch: 2, precision: fp32}
pretrain: {stride: 2, epochs: 3, warmup_epochs: 1, batch_size: 4, base_lr: 0.1,
           selection: {strategy: learned-importance}, target: {kind: tokens}}
tokenizer: {size: tiny-8, channels: 8, frames: 8}
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose targets have a mean and a deviation."""
    return made_tokenizer(tmp_path_factory.mktemp("tokenizer") / "model.safetensors", seed=0)


def made_tokenizer(path: Path, *, seed: int) -> Path:
    recipe = path.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    spec = tokenizer_spec(load_recipe(recipe))
    torch.manual_seed(seed)
    module = spec.build()
    module.target_mean.uniform_(-0.5, 0.5)
    module.target_std.uniform_(0.2, 0.5)
    state = module.state_dict()
    stored = Weights(kind="tokenizer", settings=spec.dump(), classes=None, recipe="r", step=1, tensors=state)
    stored.save(path)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE.replace("ROOT", str(clip_files)))
    return path


@pytest.fixture(scope="module")
def cache(recipe: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, as many as the recipe has epochs."""
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    prepare(recipe, tokenizer, folder)
    return folder


def prepare(recipe: Path, tokenizer: Path, folder: Path, *options: object, code: int = 0):
    named = f"tokenizer.checkpoint={tokenizer}"
    command = ["prepare", "tokens", "--recipe", recipe, "-o", folder, "--variants", 3, "--set", named, "-q"]
    return called(*command, *options, code=code)


def pretrain(recipe: Path, folder: Path, *values: str, code: int = 0):
    return called("pretrain", "--recipe", recipe, "-o", folder, "-q", *sets(*values), code=code)


def from_cache(folder: Path) -> str:
    return f"pretrain.target.cache={folder}"


def opened(recipe: Path, cache: Path, *values: str):
    """The data set of a run with the cache, and its recipe."""
    settings = load_recipe(recipe, overrides=[from_cache(cache), *values])
    dataset = pretrain_dataset(settings)
    dataset.tokens = TokenCache(settings, dataset)
    return dataset, settings


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


KINDS = {
    "values": [],
    "codes": ["pretrain.target.space=codes"],
    "two views of a decode": ["pretrain.views_per_decode=2"],
    "its own importance": ["pretrain.selection={strategy: redundancy-robust}"],
    "scores only": ["pretrain.target.kind=pixels"],
    "targets only": ["pretrain.selection.score=random"],
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * kind.endswith("only")) for kind in KINDS]
)
def test_a_run_with_a_cache_equals_the_run_with_the_tokenizer(kind: str, recipe, tokenizer, tmp_path):
    values = KINDS[kind]
    pretrain(recipe, tmp_path / "live", f"tokenizer.checkpoint={tokenizer}", *values)
    moved = shutil.copytree(tokenizer.parent, tmp_path / "moved") / tokenizer.name
    prepare(recipe, moved, tmp_path / "tokens", *sets(*values))
    moved.unlink()  # so that nothing can load it
    pretrain(recipe, tmp_path / "cached", from_cache(tmp_path / "tokens"), *values)
    assert same_run(tmp_path / "cached", tmp_path / "live")


def test_later_epochs_show_the_variants_again_with_other_noise(recipe, cache):
    dataset, settings = opened(recipe, cache)
    plain = pretrain_dataset(settings)
    for epoch in range(6):
        clip, first = dataset.read((epoch, 2)), dataset.read((epoch % 3, 2))
        assert torch.equal(clip.frames, plain.read((epoch % 3, 2)).frames)
        assert torch.equal(clip.noise, plain.read((epoch, 2)).noise)
        assert all(torch.equal(clip.inputs[name], first.inputs[name]) for name in ("importance", "values"))
    frames = [dataset.read((epoch, 2)).frames for epoch in range(3)]
    assert not any(torch.equal(one, other) for one, other in pairwise(frames))


@pytest.mark.slow
def test_a_killed_run_with_a_cache_and_workers_resumes_to_the_same_bits(recipe, cache, tmp_path):
    values = [from_cache(cache), "pretrain.epochs=40", "train.workers=2"]
    pretrain(recipe, tmp_path / "whole", *values)
    command = ["pretrain", *sets(*values)]
    assert stop_after(recipe, command, tmp_path / "parts", signal.SIGKILL, rows=5) == -signal.SIGKILL
    pretrain(recipe, tmp_path / "parts", *values)
    assert same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_folder_reports_its_contents(recipe, tokenizer, cache, tmp_path):
    result = json.loads(prepare(recipe, tokenizer, tmp_path / "tokens", "--json").stdout)
    size = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
    counts = {"videos": 4, "variants": 3, "parts": 3, "kept": 0}
    assert result == {"output": str(tmp_path / "tokens"), **counts, "bytes": size, "bad": []}
    index = json.loads((cache / INDEX).read_text())
    assert (index["videos"], index["variants"], index["grid"]) == (4, 3, [4, 4, 4])
    assert (index["clips"]["train.seed"], index["clips"]["pretrain.views_per_decode"]) == (0, 1)
    assert parts(tmp_path / "tokens") == parts(cache)


@pytest.mark.slow
def test_a_killed_call_resumes_to_the_same_bytes(recipe, tokenizer, tmp_path):
    options = ["--variants", "60", "--set", f"tokenizer.checkpoint={tokenizer}", "-q"]
    command = ["prepare", "tokens", "--recipe", recipe, "-o", tmp_path / "parts", *options]
    kill_when(lambda: len(list((tmp_path / "parts").glob("*.safetensors"))) >= 3, *command)
    told = pretrain(recipe, tmp_path / "run", from_cache(tmp_path / "parts"), code=6).stderr
    assert "of 60 parts are missing, first variant00" in told
    again = prepare(recipe, tokenizer, tmp_path / "parts", "--variants", 60, "--json")
    assert 3 <= json.loads(again.stdout)["kept"] < 60
    prepare(recipe, tokenizer, tmp_path / "whole", "--variants", 60)
    assert parts(tmp_path / "parts") == parts(tmp_path / "whole")


def test_variants_can_be_added_and_none_is_lost(recipe, tokenizer, cache, tmp_path):
    folder = shutil.copytree(cache, tmp_path / "tokens")
    more = json.loads(prepare(recipe, tokenizer, folder, "--variants", 5, "--json").stdout)
    assert (more["variants"], more["kept"]) == (5, 3)
    fewer = json.loads(prepare(recipe, tokenizer, folder, "--variants", 1, "--json").stdout)
    assert (fewer["variants"], fewer["kept"]) == (5, 5)


OTHER = {
    "train.seed=1": "train.seed (0, now 1)",
    "data.flip=false": "pretrain.flip (true, now false)",
    "pretrain.stride=1": "pretrain.stride (2, now 1)",
    "pretrain.sampling=spread": 'pretrain.sampling ("dense", now "spread")',
    "pretrain.views_per_decode=2": "pretrain.views_per_decode (1, now 2)",
    "data.frames=16": "data.frames (8, now 16)",
    "data.size=16": "data.size ([32, 32], now [16, 16])",
    "data.train=short.csv": "list of videos (",
}


@pytest.mark.parametrize("override", OTHER)
def test_tokens_of_other_clips_are_refused_with_what_differs(override, recipe, tokenizer, cache, tmp_path):
    (tmp_path / "short.csv").write_text(f"{load_recipe(recipe).data.root}/clip0.mp4 0\n" * 4)
    override = override.replace("short.csv", str(tmp_path / "short.csv"))
    expected = OTHER[override if override in OTHER else "data.train=short.csv"]
    said = pretrain(recipe, tmp_path / "run", from_cache(cache), override, code=6).stderr
    assert f"{cache}: has the tokens of other clips: {expected}" in said
    said = prepare(recipe, tokenizer, cache, "--set", override, code=2).stderr
    assert f"holds other tokens: {expected}" in said


def test_another_tokenizer_is_refused(recipe, tokenizer, cache, tmp_path):
    other = made_tokenizer(tmp_path / "other.safetensors", seed=1)
    pretrain(recipe, tmp_path / "same", from_cache(cache), f"tokenizer.checkpoint={tokenizer}")
    said = pretrain(recipe, tmp_path / "run", from_cache(cache), f"tokenizer.checkpoint={other}", code=6)
    assert (
        f"{cache}: made with the tokenizer {tokenizer}, not {other}; set tokenizer.checkpoint" in said.stderr
    )
    assert "holds other tokens: tokenizer (" in prepare(recipe, other, cache, code=2).stderr


def test_what_is_gone_or_damaged_is_a_checkpoint_error(recipe, tokenizer, cache, tmp_path):
    assert "index.json: no such file" in pretrain(recipe, tmp_path, from_cache("nowhere"), code=6).stderr
    folder = shutil.copytree(cache, tmp_path / "tokens")
    whole, first = parts(folder), min(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-100])
    said = pretrain(recipe, tmp_path / "run", from_cache(folder), code=6).stderr
    assert f"{first}: damaged" in said
    assert f"{first}: damaged" in prepare(recipe, tokenizer, folder, code=6).stderr
    first.unlink()
    assert "1 of 3 parts are missing" in pretrain(recipe, tmp_path / "b", from_cache(folder), code=6).stderr
    prepare(recipe, tokenizer, folder)
    assert parts(folder) == whole
    (folder / INDEX).write_text("{")
    assert f"{INDEX}: damaged" in pretrain(recipe, tmp_path / "c", from_cache(folder), code=6).stderr
    prepare(recipe, tokenizer, folder, "--overwrite")
    assert parts(folder) == whole
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt)" in prepare(recipe, tokenizer, tmp_path, code=2).stderr


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("videos", 10**12, "has the tokens of other clips: videos"),
        ("variants", 9999, r"9996 of 9999 parts are missing, first variant0003-"),
        ("grid", [8, 8, 8], "has the tokens of other clips: grid"),
    ],
)
def test_the_wrong_value_of_an_index_is_named(recipe, cache, tmp_path, key, value, problem):
    folder = shutil.copytree(cache, tmp_path / "tokens")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {key: value}))
    with pytest.raises(CheckpointError, match=problem):
        opened(recipe, folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (None, "--variants': must be at most 10000"),
        ("pretrain.target.space=soft", "pretrain.target.cache: has codes, not the vectors before rounding"),
        (
            "pretrain={target: {kind: pixels}, selection: {score: random}}",
            "pretrain.target.cache: serves recipes whose targets or selection need a tokenizer",
        ),
        (
            "pretrain={frame_selection: {alpha: 1.5}, selection: {strategy: redundancy-robust}}",
            "pretrain.target.cache: stores tokens of whole clips",
        ),
        ("tokenizer.checkpoint=null", "tokenizer.checkpoint: names no tokenizer"),
    ],
)
def test_recipes_that_a_cache_cannot_serve_are_reported(override, message, recipe, tokenizer, tmp_path):
    options = ["--set", override] if override else ["--variants", 10_001]
    assert message in prepare(recipe, tokenizer, tmp_path / "x", *options, code=2).stderr
    assert not (tmp_path / "x").exists()


def with_bad(recipe: Path, folder: Path, *, bad: int) -> list[str]:
    """Overrides for a list of 12 videos, some of them text."""
    root = load_recipe(recipe).data.root
    rows = [f"{root}/clip{i % 4}.mp4" for i in range(12 - bad)]
    for number in range(bad):
        (folder / f"bad{number}.mp4").write_text("no video")
        rows.insert(2 * number, str(folder / f"bad{number}.mp4"))
    (folder / "list.csv").write_text("".join(f"{row} 0\n" for row in rows))
    return [f"data.train={folder}/list.csv", "data.max_bad=0.3"]


def test_a_bad_video_is_left_out_and_replaced_as_without_a_cache(recipe, tokenizer, tmp_path):
    values = with_bad(recipe, tmp_path, bad=1)
    bad = {"path": str(tmp_path / "bad0.mp4"), "reason": "not a video file"}
    result = prepare(recipe, tokenizer, tmp_path / "tokens", *sets(*values), "--json")
    assert json.loads(result.stdout)["bad"] == [bad]
    assert f"cannot read {bad['path']}: not a video file; left out" in result.stderr
    with (tmp_path / "tokens" / "bad_videos.csv").open() as file:
        assert list(csv.DictReader(file)) == [bad]
    pretrain(recipe, tmp_path / "live", f"tokenizer.checkpoint={tokenizer}", *values)
    pretrain(recipe, tmp_path / "cached", from_cache(tmp_path / "tokens"), *values)
    assert metrics(tmp_path / "cached") == metrics(tmp_path / "live")
    (tmp_path / "bad0.mp4").unlink()
    shutil.copy(Path(load_recipe(recipe).data.root) / "clip0.mp4", tmp_path / "bad0.mp4")
    pretrain(recipe, tmp_path / "fixed", from_cache(tmp_path / "tokens"), *values)
    assert metrics(tmp_path / "fixed") == metrics(tmp_path / "cached")  # the cache has no tokens of it


def test_too_many_bad_videos_end_with_code_4_and_are_tried_again(recipe, tokenizer, tmp_path):
    options = sets(*with_bad(recipe, tmp_path, bad=5))
    said = prepare(recipe, tokenizer, tmp_path / "tokens", *options, code=4).stderr
    assert "5 of 12 videos could not be read, more than data.max_bad=0.3 allows" in said
    for number in range(4):
        shutil.copy(Path(load_recipe(recipe).data.root) / "clip0.mp4", tmp_path / f"bad{number}.mp4")
    fixed = json.loads(prepare(recipe, tokenizer, tmp_path / "tokens", *options, "--json").stdout)
    assert [Path(row["path"]).name for row in fixed["bad"]] == ["bad4.mp4"]
