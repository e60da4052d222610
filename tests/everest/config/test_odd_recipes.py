"""Recipes that no one writes on purpose: each is one line of error, at once and in little memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import RECIPE, problems_of, refused

from everest.config.recipe import load_recipe
from everest.errors import UserError
from everest.lists.reading import read_samples, read_unlabeled

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


MANY = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
LISTS = (
    "clip0.mp4 0\nclip1.mp4 1\nclip2.mp4 0\nclip3.mp4 1\n",
    "path,label\nclip0.mp4,walk\nclip1.mp4,run\nclip2.mp4,walk\n",
    "path\tlabel\tstart\tend\nclip0.mp4\t0\t0\t0.5\nclip1.mp4\t1\t0.1\t0.9\n",
    "path,label,start_frame,end_frame\nclip0.mp4,0,0,8\nclip1.mp4,1,2,12\n",
    'path,label.verb,label.noun\n"clip0.mp4",0,1\nclip1.mp4,1,0\n',
)
SYNTAX = ("", "\n", ",", "\t", " ", '"', ":", "{", "[", "\0", "é")
PIECES = (*SYNTAX, "-1", "0.5", "1e999", "x", "null", "../", "label")


@st.composite
def changed(draw: st.DrawFn, text: str) -> bytes:
    """A text in which some positions are replaced by pieces of syntax, numbers or bytes."""
    content = text.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=3))
        content = content[:start] + piece + content[end:]
    return content


def problem_of(read) -> str:
    """The message of the error, if the file is refused."""
    try:
        read()
    except UserError as error:
        return str(error)
    return ""


@MANY
@given(content=changed(RECIPE))
def test_a_changed_recipe_is_read_or_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    problem = problem_of(lambda: load_recipe(path))
    assert not problem or problem.startswith(f"{path}:")
    assert len(problem.splitlines()) <= 11  # problems are listed


@MANY
@given(data=st.data(), text=st.sampled_from(LISTS), labeled=st.booleans())
def test_a_changed_list_is_read_or_refused(clip_files: Path, tmp_path: Path, data, text: str, labeled: bool):
    path = tmp_path / "mine.csv"
    path.write_bytes(data.draw(changed(text)))
    read = read_samples if labeled else read_unlabeled
    problem = problem_of(lambda: read(path, root=clip_files))
    assert not problem or str(path) in problem
