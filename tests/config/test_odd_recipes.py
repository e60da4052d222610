"""Recipes that no one writes on purpose: each is one line of error, at once and in little memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import problems_of, refused

from everest.config.yaml import read_yaml, write_yaml
from everest.engine.listing import summarize
from everest.errors import RecipeError
from everest.system.run_folder import ENVIRONMENT, RECIPE

WRITTEN_OUT = "anchors, aliases and tags are not read; write the value itself"
LINE = 600  # letters of a message, with the path of a temporary folder
DOCUMENTS = {
    "tag": ("data: {frames: !!int 8}", f":1: {WRITTEN_OUT}"),
    "python": ("data: !!python/object/apply:os.system [ls]", WRITTEN_OUT),
    "own tag": (f"data: !{'x' * 5000} 1", WRITTEN_OUT),
    "anchor": ("data: &a {frames: *a}", WRITTEN_OUT),
    "alias": ("data: *nothing", WRITTEN_OUT),
    "merge key": ("data: {<<: {frames: 8}}", "data.<<: unknown key"),
    "digits": (f"data: {{frames: {'1' * 5000}}}", "not YAML: Exceeds the limit"),
    "float digits": (f"data: {{max_bad: {'1' * 5000}.0}}", "data.max_bad: must be a finite number"),
    "deep list": ("[" * 100_000, "not YAML: maximum recursion depth exceeded"),
    "deep block": ("- " * 50_000, "not YAML: maximum recursion depth exceeded"),
    "some unknown keys": ("".join(f"k{i}: 1\n" for i in range(4000)), "3990 more problems"),
    "long key": (f"? {'k' * 100_000}\n: 1\n", "unknown key"),
    "long duplicate": (f"? {'k' * 10_000}\n? {'k' * 10_000}\n", "duplicate key 'kkk"),
    "long value": (f"data: {{frames: {'x' * 100_000}}}", "must be an integer"),
    "long text": (f"model: {{backbone: {'x' * 100_000}}}", "unknown value 'xxx"),
    "long base": (f"base: {'x' * 100_000}", "unknown name 'xxx"),
    "long path of a base": (f"base: {'x/' * 50_000}", "File name too long"),
    "base that is no text": (f"base: [{'1,' * 4000}]", "must be the name or path of a recipe"),
    "base with NUL": ('base: "./a\\0b.yaml"', "embedded null"),
    "NUL": ("data: \0", "not YAML"),
    "two documents": ("a: 1\n---\nb: 1\n", "but found another document"),
    "duplicate key": ("data:\n  frames: 16\n  frames: 24\n", ":3: duplicate key 'frames'"),
    "duplicate integer": ("data:\n  1: 2\n  +1: 3\n", ":3: duplicate key '1'"),
    "end": ("data: [\n", ":2: expected the node content, but found '<stream end>'"),
    "bool as key": ("data:\n  true: 2\n", ":2: a key must be text"),
    "float as key": ("data:\n  1.5: 2\n", ":2: a key must be text"),
    "list": ("- data\n", ": a recipe is a mapping of sections such as 'data:', this is not"),
    "number as base": ("base: 3\n", ": base: must be the name or path of a recipe, not 3"),
    "unknown base": ("base: ucf10\n", ": base: recipe: unknown name 'ucf10'; did you mean 'ucf101'?"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_a_recipe_or_a_short_error(name: str, tmp_path: Path):
    text, message = DOCUMENTS[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    first, *others = problems_of(path)
    assert message in "\n".join([first, *others])
    assert first.startswith(str(path))
    assert not message.startswith(":") or first == f"{path}{message}"
    assert all(len(line) < LINE for line in (first, *others))
    assert len(others) == (10 if name == "some unknown keys" else 0)


@given(st.text(st.sampled_from("&*!<-?:,[]{}|>'\"#%@` \nab1.\t\0é"), max_size=60))
def test_any_text_is_a_value_or_an_error_of_the_recipe(text: str):
    problem = ""
    try:
        write_yaml({"a": read_yaml(text, "x.yaml")})
    except RecipeError as error:
        problem = str(error)
    assert len(problem.splitlines()) <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x" * 100_000, "must be section.key=value"),
        (f"data.frames={'x' * 100_000}", "must be an integer, not 'xxx"),
        (f"data.frames={'1' * 5000}", "is not YAML (not YAML: Exceeds the limit"),
        (f"data.frames={'[' * 100_000}", "is not YAML (not YAML: maximum recursion"),
        (f"data.frames=!!{'x' * 9999} 1", "is not YAML"),
        (f"{'a' * 100_000}=1", "unknown key"),
        (f"data.{'a' * 100_000}=1", "unknown key"),
        ("data.root=a\0b", "is not YAML"),
        ("data.root=a\udcffb", "is not YAML"),
        ("data.frames=a\\nb\nc", "must be an integer"),
        (f"pretrain.by_backbone.{'x' * 9999}.epochs=1", "unknown backbone 'xxx"),
    ],
)
def test_any_override_is_a_setting_or_a_short_error(override: str, message: str):
    (problem,) = problems_of("ucf101", override)
    assert message in problem
    assert len(problem) < LINE


def test_only_a_regular_file_is_a_recipe(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"summary: caf\xe9\n")
    for path, message in (
        (tmp_path / "fifo.yaml", "not a file"),
        (tmp_path / "folder.yaml", "not a file"),
        (tmp_path / "latin.yaml", "not UTF-8 text"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / ("x" * 300 + ".yaml"), "File name too long"),
        (tmp_path / "a\0b.yaml", "embedded null "),
        (tmp_path / ("x/" * 3000), "File name too long"),
        (Path("no/such.yaml"), "no/such.yaml: cannot be read: No such file or directory"),
    ):
        (problem,) = problems_of(path)
        assert message in problem
        assert len(problem) < 2 * LINE
    for command in (["recipes", "show"], ["pretrain", "--recipe"]):
        message = refused(*command, tmp_path / "fifo.yaml", code=2)
        problem = "cannot be read: not a file; the recipe of a run is its recipe.yaml"
        assert message == f"error: {tmp_path}/fifo.yaml: {problem}\n"


def test_a_run_with_an_odd_recipe_is_listed_as_damaged(tmp_path: Path):
    (tmp_path / ENVIRONMENT).write_text("{}")
    for text in ("a: &a [*a]", "[" * 9999):
        (tmp_path / RECIPE).write_text(text)
        assert summarize(tmp_path).state == "damaged"
