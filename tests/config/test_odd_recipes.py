"""Recipes that no one writes on purpose: each is one line of error, at once and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import problems_of, refused

from everest.config.recipe import load_recipe
from everest.config.recipe_files import MOST_BASES
from everest.config.yaml import MOST_BYTES, MOST_LEVELS, MOST_VALUES, read_yaml, write_yaml
from everest.engine.listing import summarize
from everest.errors import RecipeError
from everest.system.run_folder import ENVIRONMENT, RECIPE

LINE = 600  # letters of a message, with the path of a temporary folder
BILLION = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
DOCUMENTS = {
    "integer tag": ("data: {frames: !!int abc}", ":1: the tag !!int does not fit the value; leave it out"),
    "float tag": ("data: {frames: !!float abc}", "the tag !!float does not fit"),
    "bool tag": ("data: {flip: !!bool x}", "the tag !!bool does not fit"),
    "null tag": ("data: {val: !!null x}", "the tag !!null does not fit"),
    "timestamp": ("name: !!timestamp x", "the tag !!timestamp does not fit"),
    "date": ("name: !!timestamp 2020-01-01", "the tag !!timestamp does not fit"),
    "binary": ("name: !!binary x", "the tag !!binary does not fit"),
    "set": ("data: !!set {a, b}", "the tag !!set does not fit"),
    "omap": ("data: !!omap [a: 1]", "the tag !!omap does not fit"),
    "map of a list": ("data: !!map [1]", "the tag !!map does not fit"),
    "list of a map": ("data: !!seq {a: 1}", "the tag !!seq does not fit"),
    "python": ("data: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system"),
    "own tag": (f"data: !{'x' * 5000} 1", "the tag !xxx"),
    "digits": (f"data: {{frames: {'1' * 5000}}}", ":1: a number of 5000 digits"),
    "negative digits": (f"data: {{frames: -{'1' * 5000}}}", "digits"),
    "float digits": (f"data: {{max_bad: {'1' * 5000}.0}}", "data.max_bad: must be a finite number"),
    "circle": ("data: &a {frames: *a}", ":1: '*a' is a part of itself"),
    "circle of a list": ("data: &a [1, [*a]]", "'*a' is a part of itself"),
    "unknown anchor": ("data: *nothing", "undefined alias 'nothing'"),
    "deep list": ("[" * 100_000, f"more than {MOST_LEVELS} levels"),
    "deep mapping": ("{a: " * 10_000, f"more than {MOST_LEVELS} levels"),
    "deep block": ("- " * 50_000, f"more than {MOST_LEVELS} levels"),
    "deep keys": ("? " * 50_000, f"more than {MOST_LEVELS} levels"),
    "billion": (BILLION, f"more than {MOST_VALUES} values"),
    "merged": (MERGED, f"more than {MOST_VALUES} values"),
    "many values": (f"data: [{'1,' * 100_000}]", f"more than {MOST_VALUES} values"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(20_000)), f"more than {MOST_VALUES} values"),
    "some unknown keys": ("".join(f"k{i}: 1\n" for i in range(4000)), "3990 more problems"),
    "comments": ("# x\n" * 2_500_000, f"more than {MOST_BYTES // 1024} KiB"),
    "long key": (f"? {'k' * 100_000}\n: 1\n", "unknown key"),
    "long duplicate": (f"? {'k' * 10_000}\n? {'k' * 10_000}\n", "duplicate key 'kkk"),
    "long value": (f"data: {{frames: {'x' * 100_000}}}", "must be an integer"),
    "long text": (f"model: {{backbone: {'x' * 100_000}}}", "unknown value 'xxx"),
    "long base": (f"base: {'x' * 100_000}", "unknown name 'xxx"),
    "long path of a base": (f"base: {'x/' * 50_000}", "File name too long"),
    "base that is no text": (f"base: [{'1,' * 4000}]", "must be the name or path of a recipe"),
    "base with NUL": ('base: "./a\\0b.yaml"', "has a NUL character"),
    "NUL": ("data: \0", "not YAML"),
    "two documents": ("a: 1\n---\nb: 1\n", "but found another document"),
    "duplicate key": ("data:\n  frames: 16\n  frames: 24\n", ":3: duplicate key 'frames'"),
    "duplicate integer": ("data:\n  1: 2\n  +1: 3\n", ":3: duplicate key '1'"),
    "end": ("data: [\n", ":2: expected the node content, but found '<stream end>'"),
    "list tagged as text": ("data: {? !!str [1] : 2}\n", ":1: a key must be text"),
    "python name": ("data: !!python/name:os.system\n", "the tag !!python/name:os.system"),
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


def test_aliases_merges_and_fitting_tags_still_work(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "base: ucf101\n"
        "data: {frames: !!int 8, root: !!str 12, max_bad: !!float 1, flip: !!bool true, val: !!null }\n"
        "pretrain: &stage {stride: &two 2, betas: !!seq [0.9, 0.95]}\n"
        "finetune: {<<: *stage, epochs: *two, warmup_epochs: 0}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.data.frames, recipe.data.root, recipe.data.max_bad) == (8, "12", 1.0)
    assert (recipe.finetune.stride, recipe.finetune.epochs, recipe.finetune.betas) == (2, 2, (0.9, 0.95))


@given(st.text(st.sampled_from("&*!<-?:,[]{}|>'\"#%@` \nab1.\t\0é"), max_size=60))
def test_any_text_is_a_value_or_an_error_of_the_recipe(text: str):
    problem = ""
    try:
        write_yaml({"a": read_yaml(text, "x.yaml")})
    except RecipeError as error:
        problem = str(error)
    assert len(problem.splitlines()) <= 1


def test_a_chain_of_bases_has_an_end(tmp_path: Path):
    for i in range(3000):
        (tmp_path / f"r{i}.yaml").write_text(f"base: ./r{i + 1}.yaml\n")
    assert f"r0.yaml: base: more than {MOST_BASES} recipes" in problems_of(tmp_path / "r0.yaml")[0]
    (tmp_path / f"r{MOST_BASES}.yaml").write_text("summary: the last\n")
    assert load_recipe(tmp_path / "r0.yaml").summary == "the last"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x" * 100_000, "must be section.key=value"),
        (f"data.frames={'x' * 100_000}", "must be an integer, not 'xxx"),
        (f"data.frames={'1' * 5000}", "is not YAML (a number of 5000 digits)"),
        (f"data.frames={'[' * 100_000}", "is not YAML (more than 32 levels)"),
        (f"data.frames=!!{'x' * 9999} 1", "is not YAML"),
        (f"{'a.' * 100_000}b=1", "must be section.key=value"),
        (f"{'a' * 100_000}=1", "unknown key"),
        (f"data.{'a' * 100_000}=1", "unknown key"),
        ("data.root=a\0b", "is not YAML"),
        ("data.root=a\udcffb", "is not YAML"),
        ('data.root="a\\0b"', "'a\\x00b' has a NUL character"),
        ('data.root="a\\udcffb"', "'a\\udcffb' is not UTF-8 text; rename it"),
        ("data.frames=a\\nb\nc", "must be an integer"),
        (f"pretrain.by_backbone.{'x' * 9999}.epochs=1", "unknown backbone 'xxx"),
    ],
)
def test_any_override_is_a_setting_or_a_short_error(override: str, message: str):
    (problem,) = problems_of("ucf101", override)
    assert message in problem
    assert len(problem) < LINE


def test_only_a_regular_file_of_some_length_is_a_recipe(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"summary: caf\xe9\n")
    (tmp_path / "long.yaml").write_bytes(b"summary: " + b"x" * 10_000_000)
    for path, message in (
        (tmp_path / "fifo.yaml", "not a regular file"),
        (tmp_path / "folder.yaml", "a folder"),
        (tmp_path / "latin.yaml", "not UTF-8 text"),
        (tmp_path / "long.yaml", "more than 256 KiB"),
        (Path("/dev/zero"), "not a regular file"),
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
        problem = "cannot be read: not a regular file; save the recipe to one"
        assert message == f"error: {tmp_path}/fifo.yaml: {problem}\n"


def test_a_run_with_an_odd_recipe_is_listed_as_damaged(tmp_path: Path):
    (tmp_path / ENVIRONMENT).write_text("{}")
    for text in ("a: &a [*a]", "[" * 9999):
        (tmp_path / RECIPE).write_text(text)
        assert summarize(tmp_path).state == "damaged"


WITHOUT_TORCH = """
import sys
from everest_cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize("command", [["pretrain", "--recipe"], ["recipes", "show"], ["profile", "--recipe"]])
def test_a_file_that_is_no_recipe_is_refused_before_torch_is_imported(command: list[str], tmp_path: Path):
    (tmp_path / "x.yaml").write_text("data: !!int abc")
    arguments = [sys.executable, "-c", WITHOUT_TORCH, *command, str(tmp_path / "x.yaml")]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("2 False\n", 0), ended.stderr
