import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from small_runs import called, json_of, refused, sets

from everest.config.recipe import dump_recipe, load_recipe, recipe_values
from everest.config.recipe_files import shipped_names, shipped_recipe
from everest.config.yaml import read_yaml

recipes, wrong = partial(called, "recipes"), partial(refused, "recipes")


def test_list_names_every_recipe_with_its_summary():
    rows = json_of("recipes list")
    assert [row["name"] for row in rows] == shipped_names()
    assert {"ucf101", "hmdb51", "k400", "ssv2", "oscc", "videomae-ucf101", "custom"} <= set(shipped_names())
    assert all(row["summary"] for row in rows)
    lines = recipes("list").stdout.splitlines()[1:]  # not a terminal: each recipe is on one line
    assert [line.split()[0] for line in lines] == shipped_names()


def test_show_names_all_problems(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("data: {frames: many, sise: 1}\n")
    assert wrong("show", path, code=2).removeprefix("error: ").splitlines() == [
        f"{path}: data.frames: must be an integer, not 'many'",
        f"{path}: data.sise: unknown key; did you mean 'size'?",
    ]


def test_show_prints_the_file_or_all_settings_and_checks_overrides_as_training_does():
    assert recipes("show", "ucf101").stdout == shipped_recipe("ucf101").text
    assert "did you mean 'ucf101'" in wrong("show", "ucf11", code=2)
    for settings in ([], ["data.frames=24", "pretrain.epochs=5"]):
        resolved = dump_recipe(load_recipe("ucf101", overrides=settings))
        assert recipes("show", "ucf101", *sets(*settings), "--resolved").stdout == resolved
    assert "did you mean 'frames'" in wrong("show", "ucf101", "--set", "data.frame=16", code=2)


def test_show_checks_the_variants_of_a_sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    text = "recipe: ucf101\nvariants: {few: {pretrain.epochs: 9}, tube: {}}\n"
    path.write_text(text)
    assert recipes("show", path).stdout == text
    variants = read_yaml(recipes("show", path, "--resolved").stdout, "variants")
    epochs = {name: variant["pretrain"]["epochs"] for name, variant in variants.items()}
    assert epochs == {"few": 9, "tube": load_recipe("ucf101").pretrain.epochs}
    path.write_text("recipe: ucf101\nvariants: {few: {pretrain.epoch: 9}, many: {data.sise: 8}}\n")
    problems = wrong("show", path, code=2).splitlines()
    assert problems[0].startswith(f"error: {path}: few: pretrain.epoch: unknown key; did you mean")
    assert problems[1].startswith(f"{path}: many: data.sise: unknown key; did you mean")


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
