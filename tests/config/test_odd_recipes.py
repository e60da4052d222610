"""Recipes that no one writes on purpose: each is one line of error, at once and in little memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_runs import problems_of, refused

WRITTEN_OUT = "anchors, aliases and tags are not read; write the value itself"
LINE = 600  # letters of a message, with the path of a temporary folder
DOCUMENTS = {
    "tag": ("data: {frames: !!int 8}", f":1: {WRITTEN_OUT}"),
    "python": ("data: !!python/object/apply:os.system [ls]", WRITTEN_OUT),
    "alias": ("data: *nothing", WRITTEN_OUT),
    "deep list": ("[" * 100_000, "not YAML: maximum recursion depth exceeded"),
    "some unknown keys": ("".join(f"k{i}: 1\n" for i in range(1000)), "990 more problems"),
    "long value": (f"data: {{frames: {'x' * 100_000}}}", "must be an integer"),
    "base with NUL": ('base: "./a\\0b.yaml"', "embedded null"),
    "duplicate key": ("data:\n  frames: 16\n  frames: 24\n", ":3: duplicate key 'frames'"),
    "list": ("- data\n", ": a recipe is a mapping of sections such as 'data:', this is not"),
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x" * 100_000, "must be section.key=value"),
        (f"data.frames={'1' * 5000}", "is not YAML (not YAML: Exceeds the limit"),
        (f"data.{'a' * 100_000}=1", "unknown key"),
        ("data.root=a\0b", "is not YAML"),
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
