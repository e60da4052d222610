"""`everest recipes`: what it prints, what it refuses, and that listing stays cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from small_runs import called, json_of, refused

from everest.config.recipe import dump_recipe, load_recipe, recipe_values
from everest.config.recipe_files import shipped_names, shipped_recipe

recipes, wrong = partial(called, "recipes"), partial(refused, "recipes")


def test_list_names_every_recipe_with_its_summary():
    rows = json_of("recipes list")
    assert [row["name"] for row in rows] == shipped_names()
    assert {"ucf101", "hmdb51", "k400", "ssv2", "oscc", "videomae-ucf101", "custom"} <= set(shipped_names())
    assert all(row["summary"] for row in rows)
    assert recipes("list", "-q").stdout.split() == shipped_names()
    lines = recipes("list").stdout.splitlines()[1:]  # not a terminal: each recipe is on one line
    assert [line.split()[0] for line in lines] == shipped_names()


def test_list_leaves_torch_alone():
    code = (
        "import sys; from typer.testing import CliRunner; from everest_cli.recipes import app; "
        "assert CliRunner().invoke(app, ['list']).exit_code == 0; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_show_prints_the_file_or_all_settings():
    assert recipes("show", "videomae-ucf101").stdout == shipped_recipe("videomae-ucf101").text
    resolved = dump_recipe(load_recipe("videomae-ucf101"))
    assert recipes("show", "videomae-ucf101", "--resolved").stdout == resolved
    assert "did you mean 'ucf101'" in wrong("show", "ucf11", code=2)


def test_copy_goes_to_a_file_or_folder_and_never_overwrites(tmp_path):
    path = tmp_path / "mine.yaml"
    assert recipes("copy", "custom", path).stdout.strip() == str(path)
    assert load_recipe(path).name == "mine"
    assert "`everest recipes suggest VIDEOS` fits a recipe" in recipes("copy", "small", tmp_path).stderr
    assert recipes("copy", "ucf101", tmp_path).stderr == ""
    assert recipes("copy", "custom", tmp_path).stdout.strip() == str(tmp_path / "custom.yaml")
    assert "exists already" in wrong("copy", "custom", path, code=2)
    assert "there is no folder" in wrong("copy", "custom", tmp_path / "no" / "mine.yaml", code=2)


def test_validate_says_ok_or_names_all_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("data: {frames: 15, sise: 1}\n", encoding="utf-8")
    assert recipes("validate", "ucf101", "custom").stdout == "ucf101: ok\ncustom: ok\n"
    assert recipes("validate", "bad.yaml", "ucf101", "none.yaml", code=2).stderr.splitlines() == [
        "error: bad.yaml: data.sise: unknown key; did you mean 'size'?",
        "none.yaml: cannot be read: No such file or directory",
    ]


def test_validate_checks_overrides_as_training_does():
    recipes("validate", "ucf101", "--set", "data.frames=24", "--set", "pretrain.epochs=5")
    message = wrong("validate", "ucf101", "k400", "--set", "data.frames=15", code=2)
    assert re.search(r"--set: data\.frames: .*multiple", message)
    assert "did you mean 'frames'" in wrong("validate", "ucf101", "--set", "data.frame=16", code=2)


def test_validate_checks_the_arms_of_a_sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("recipe: ucf101\narms: {few: {pretrain.epochs: 9}, tube: {}}\n", encoding="utf-8")
    assert recipes("validate", path).stdout == f"{path}: ok\n"
    path.write_text("recipe: ucf101\narms: {few: {pretrain.epoch: 9}}\n", encoding="utf-8")
    message = f"error: {path}: few: pretrain.epoch: unknown key; did you mean"
    assert wrong("validate", path, code=2).startswith(message)


def test_validate_tells_idle_keys_on_stderr(tmp_path):
    path = tmp_path / "mine.yaml"
    text = "base: ucf101\npretrain: {selection: {strategy: tube, order: ascending}}\n"
    path.write_text(text, encoding="utf-8")
    result = recipes("validate", path)
    assert result.stdout == f"{path}: ok\n"
    assert result.stderr == f"{path}: pretrain.selection.order has no effect with tube\n"


def test_the_template_names_every_key():
    """Those of a strategy, a target or a head that it does not have stand in docs/methods.md."""
    text = shipped_recipe("custom").text
    values = recipe_values(load_recipe("custom"))

    def keys(section: dict[str, Any]) -> Iterator[str]:
        for key, value in section.items():
            yield key
            yield from keys(value) if isinstance(value, dict) else ()

    unnamed = {"name"}  # follows from the file
    assert {key for key in keys(values) if not re.search(rf"\b{key}\b", text)} <= unnamed
