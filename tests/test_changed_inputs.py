"""Recipes and lists with any mistake: each is read, or refused by an error that names the file."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import RECIPE

from everest.config.recipe import load_recipe
from everest.errors import UserError
from everest.lists.reading import read_samples, read_unlabeled

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
    """A text in which some places are replaced by pieces of syntax, numbers or bytes."""
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
