import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_cache import REVISION, cached, transformers_folder
from small_runs import refused

from everest.system.hub import license_of

NAME = "hf:someone/videomae-tiny"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache in the format of huggingface_hub, with one classifier of transformers."""
    folder = transformers_folder(tmp_path / "videomae-tiny")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [video]\n---\n# A model\n")
    cached(tmp_path / "hub", NAME.removeprefix("hf:"), folder)
    return tmp_path


def everest(cache: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process: huggingface_hub reads its environment when it is imported."""
    place = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "everest_cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **place})
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.mark.slow
def test_a_checkpoint_of_the_cache_is_converted_and_its_license_shown(cache: Path, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    ended = everest(cache, "convert", NAME, "--out", out, "--json")
    assert f"{NAME}: license cc-by-nc-4.0, revision {REVISION[:12]}" in ended.stderr
    shown = json.loads(ended.stdout)
    assert (shown["family"], shown["frames"], shown["licence"]) == ("transformers", 4, "cc-by-nc-4.0")
    inspected = everest(cache, "convert", f"{NAME}@{REVISION}", "--inspect")
    assert "family: transformers" in inspected.stdout


@pytest.mark.slow
def test_every_command_takes_a_name_of_the_hub_as_a_checkpoint(cache: Path, clip_files: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f'data: {{root: "{clip_files}", num_classes: 400, frames: 4, size: 64, test: train.csv}}\n'
        "model: {backbone: vit-tiny, tubelet: [2, 16, 16], width: 48, depth: 2, heads: 3}\n"
        "train: {workers: 0}\nfinetune: {stride: 2}\neval: {clips: 1, crops: 1}\n"
    )
    tested = everest(cache, "eval", "-c", NAME, "--recipe", recipe, "--json", "-q", "--gpus", "cpu")
    assert json.loads(tested.stdout)["videos"] == 4
    assert "license cc-by-nc-4.0" in tested.stderr
    options = ["--recipe", recipe, "--init", NAME, "--dry-run", "--gpus", "cpu", "-o", tmp_path / "run"]
    started = everest(cache, "finetune", *options)
    assert "license cc-by-nc-4.0" in started.stderr


@pytest.mark.slow
def test_a_checkpoint_neither_cached_nor_reachable_is_an_error(cache: Path):
    gone = everest(cache, "convert", "hf:someone/else", "--inspect", code=6)
    assert f"hf:someone/else: not complete in the cache {cache / 'hub'}" in gone.stderr
    assert "hf download someone/else" in gone.stderr


def test_a_name_without_an_owner_is_an_error():
    assert "write hf:OWNER/NAME" in refused("eval -c hf:nonsense", code=6)


def test_the_license_is_read_from_the_front_matter(tmp_path: Path):
    readme = tmp_path / "README.md"
    assert license_of(tmp_path) is None
    for text, name in (
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: research\n---\n", "research"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("# license: mit\n---\nlicense: mit\n---\n", None),
        ("---\n{[\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
    ):
        readme.write_text(text)
        assert license_of(tmp_path) == name, text
