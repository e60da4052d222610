"""Every file that everest writes and reads again: damaged, it is one line that names it, and an exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from run_folders import make_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import run
from typer.testing import CliRunner

from everest.errors import RecipeError, UserError
from everest.system.parts import open_parts
from everest.system.run_folder import RunFolder
from everest.system.text import load_json
from everest_cli.main import app
from everest_workflows.project.request import Request, find_project, write_document

OTHER_KIND = b"\0{[ of another kind\n"


class Made(NamedTuple):
    """Intact files in a folder of a test, one of which is damaged and then read."""

    file: Path
    command: list[object] | Callable[[], object]  # what reads it: a command, or a call of the library


Maker = Callable[[Path, pytest.FixtureRequest], Made]


def plotted(name: str) -> Maker:
    def make(folder: Path, request: pytest.FixtureRequest) -> Made:
        make_run(folder / "run", logged=3)
        return Made(folder / "run" / name, ["plot", folder / "run", "--x", "hours", "-o", folder / "c.png"])

    return make


def resumed(name: str) -> Maker:
    """The finished run of an autoencoder that started from another one, with a state and a bad video."""

    def make(folder: Path, request: pytest.FixtureRequest) -> Made:
        options = ["--recipe", request.getfixturevalue("recipe"), "-q", "-o", folder / "run"]
        command = ["pretrain", *options, "--init", request.getfixturevalue("autoencoder_run")]
        shutil.copytree(request.getfixturevalue("continued_run"), folder / "run")
        for state in sorted((folder / "run" / "state").iterdir())[:-1]:
            state.unlink()
        RunFolder(folder / "run").write_bad_videos({"gone.mp4": "no such file"})
        return Made(folder / "run" / name, command)

    return make


@pytest.fixture(scope="module")
def continued_run(tmp_path_factory: pytest.TempPathFactory, recipe: Path, autoencoder_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("continued") / "run"
    run("pretrain", "--recipe", recipe, "-q", "-o", folder, "--init", autoencoder_run)
    return folder


def sweep_results(folder: Path, request: pytest.FixtureRequest) -> Made:
    seeds = [{"seed": 0, "finished": True, "gmacs": 1.0, "hours": 0.5, "metrics": {"top1": 50.0}, "jobs": []}]
    variant = {"overrides": {}, "stages": ["eval"], "seeds": seeds}
    variants = [{"variant": name, **variant} for name in "ab"]
    sweep = {"recipe": "r", "summary": "", "stages": ["eval"], "seeds": [0], "against": "a", "metric": "top1"}
    document = {**sweep, "jobs": {"all": 2, "finished": 2}, "variants": variants, "failures": []}
    (folder / "results.json").write_text(json.dumps(document))
    return Made(folder / "results.json", ["sweep", "report", folder])


def shards(folder: Path, request: pytest.FixtureRequest) -> Made:
    videos = request.getfixturevalue("clip_files")
    run("prepare", "shard", videos / "train.csv", "-o", folder / "shards", "-q")
    index = folder / "shards" / "train.index.json"
    options = ["--recipe", request.getfixturevalue("recipe"), f"--set=data.train={index}", "--dry-run", "-q"]
    return Made(index, ["pretrain", *options])


def timelines(folder: Path, request: pytest.FixtureRequest) -> Made:
    video, file = request.getfixturevalue("clip_files") / "clip0.mp4", folder / "t.safetensors"
    options = ["-c", request.getfixturevalue("classifier_run"), "--window", 1, "--step", 0.5, "-q"]
    run("timeline", video, *options, "--save", file)
    return Made(file, ["timeline", file, "--json"])


def checked(folder: Path, request: pytest.FixtureRequest) -> Made:
    videos = request.getfixturevalue("clip_files") / "train.csv"
    command = ["prepare", "check", videos, "-o", folder, "-q", "--overwrite"]
    run(*command)
    return Made(next((folder / "checked_videos").glob("*.safetensors")), command[:-1])


def part(name: str) -> Maker:
    def make(folder: Path, request: pytest.FixtureRequest) -> Made:
        def read() -> None:
            with open_parts(folder / "rows", {"weights": "w"}) as parts:
                parts.joined()

        with open_parts(folder / "rows", {"weights": "w"}) as parts:
            parts.add(0, [None, ["empty file", False]], {"x": torch.zeros(1, 2, 3)})
        return Made(folder / "rows" / name, read)

    return make


def project(folder: Path, request: pytest.FixtureRequest) -> Made:
    asked = Request(videos=str(request.getfixturevalue("clip_files")))
    document = {"request": asdict(asked), "files": {}, "section": {}, "folds": [], "window": None}
    document |= {"possible_folds": None, "tested": [], "planned_minutes": 1.0}
    write_document(folder / "project.json", document)
    return Made(folder / "project.json", lambda: find_project(folder, asked, overwrite=False))


class Kind(NamedTuple):
    make: Maker
    code: int


KINDS = {
    "env.json, plotted": Kind(plotted("env.json"), 2),
    "metrics.jsonl, plotted": Kind(plotted("metrics.jsonl"), 2),
    "recipe.yaml, plotted": Kind(plotted("recipe.yaml"), 2),
    "env.json, resumed": Kind(resumed("env.json"), 2),
    "bad_videos.csv, resumed": Kind(resumed("bad_videos.csv"), 4),
    "state, resumed": Kind(resumed("state/step-000000003.safetensors"), 6),
    "results.json": Kind(sweep_results, 2),
    "index of shards": Kind(shards, 4),
    "timelines": Kind(timelines, 4),
    "results of a check": Kind(checked, 2),
    "plan of parts": Kind(part("plan.json"), 2),
    "part": Kind(part("00000000-00000000-00000002-last.safetensors"), 2),
    "project.json": Kind(project, 2),
}


def outcome(made: Made) -> tuple[int, str]:
    """The exit code of reading the files, and the messages."""
    if not isinstance(made.command, list):
        try:
            made.command()
        except UserError as error:
            return error.exit_code, f"error: {error}\n"
        return 0, ""
    result = CliRunner().invoke(app, list(map(str, made.command)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def assert_refused(made: Made, code: int, *, may_read: bool, case: object) -> None:
    """The file is refused with its exit code, in one line that names it or its folder."""
    found, messages = outcome(made)
    if may_read and found == 0:
        return
    assert found in ({2, code} if may_read else {code}), (case, messages)
    (line,) = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert str(made.file) in messages or str(made.file.parent) in line, case


@pytest.fixture
def damages(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Iterator[Made]]:
    """Yields intact files of a kind again and again: a command may change them."""

    def intact(kind: str) -> Iterator[Made]:
        folder, backup = tmp_path / "now", tmp_path / "backup"
        folder.mkdir()
        made = KINDS[kind].make(folder, request)
        shutil.copytree(folder, backup)
        while True:
            yield made
            shutil.rmtree(folder)
            shutil.copytree(backup, folder)

    return intact


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_or_of_another_kind_is_one_line(kind: str, damages):
    code = KINDS[kind].code
    for made, damage in zip(damages(kind), ("none", "cut", "empty", "other", "folder"), strict=False):
        file, content = made.file, made.file.read_bytes()
        # What a kill leaves of rows is continued; half of a short recipe may be one.
        may_read = damage in ("cut", "empty", "folder") and file.suffix in (".jsonl", ".csv", ".yaml")
        if damage == "none":
            assert outcome(made)[0] == 0
            continue
        if damage == "folder":
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": OTHER_KIND}[damage])
        assert_refused(made, code, may_read=may_read, case=damage)


def documents(file: Path) -> tuple[dict[str, Any], Callable[[Any], None]]:
    """The values of a file (of rows: the first) by their names, and what writes other ones."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            texts = opened.metadata()
        tensors = load_file(file)
        return texts, lambda values: save_file(
            tensors, file, {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        )
    first, *others = [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines()
    return json.loads(first), lambda values: file.write_text("\n".join([json.dumps(values), *others, ""]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(("recipe", "bad"))])
def test_a_value_that_is_missing_or_of_another_type_is_one_line_or_not_needed(kind: str, damages):
    code, intact = KINDS[kind].code, damages(kind)
    names, _ = documents(next(intact).file)
    for name in names if isinstance(names, dict) else ():
        for wrong in ([[]], 7, {"x": 1}, None):
            made = next(intact)
            values, write = documents(made.file)
            write(values | {name: wrong})
            assert_refused(made, code, may_read=True, case=(name, wrong))
        made = next(intact)
        values, write = documents(made.file)
        write({key: value for key, value in values.items() if key != name})
        assert_refused(made, code, may_read=True, case=name)
    made = next(intact)
    if made.file.suffix != ".safetensors":
        documents(made.file)[1](7)
        assert_refused(made, code, may_read=False, case="not an object")


def set_in_index(key: str, value: object) -> Callable[[Any], None]:
    return lambda made: made["samples"][0].update({key: value})


@pytest.mark.parametrize(
    "damage",
    [
        *[set_in_index("label", value) for value in (3, ["a"])],
        *[set_in_index("path", 3), set_in_index("offset", -5), set_in_index("size", -5)],
        lambda index: index.update(samples=[]),
        lambda index: index["shards"].append({"file": "a\0.tar", "bytes": 3}),
    ],
)
def test_an_index_of_shards_that_a_script_has_changed_is_one_line(damage, tmp_path, request):
    made = shards(tmp_path, request)
    index = json.loads(made.file.read_text())
    damage(index)
    made.file.write_text(json.dumps(index))
    assert_refused(made, 4, may_read=False, case=damage)


def test_timelines_of_other_shapes_are_one_line(tmp_path, request):
    made = timelines(tmp_path, request)
    tensors, (texts, _) = load_file(made.file), documents(made.file)
    for name, other in (("outputs", tensors["0.outputs"][:, :1]), ("ends", tensors["0.ends"][:, None])):
        save_file({**tensors, f"0.{name}": other.contiguous()}, made.file, texts)
        assert_refused(made, 4, may_read=False, case=name)


@pytest.mark.parametrize("key", ["videos", "processes", "micro_batch", "steps", "finished"])
def test_a_plan_without_numbers_is_one_line(key: str, tmp_path, request):
    made = resumed("env.json")(tmp_path, request)
    values, write = documents(made.file)
    write(values | {"plan": values["plan"] | {key: "x"}})
    assert_refused(made, 2, may_read=False, case=key)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"gone\.json: cannot be read: No such file or directory$"):
        load_json(tmp_path / "gone.json", fix="remove it")
