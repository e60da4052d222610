"""Damaged journals, stores of rows and files of a run: one error that names them, or the work goes on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from damage import damaged_bytes, damaged_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from small_runs import called, refused, small_recipe

from everest.errors import DataError, RecipeError
from everest.inference.journal import open_journal
from everest.inference.row_store import open_row_store
from everest.prepare.examine import Inspection
from everest.system.json_text import parse_json, validated
from everest.system.locks import running_here
from everest.system.run_folder import RunFolder

EACH = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
VIDEOS = ["a.mp4", "b.mp4", "c\udce9.mp4"]


def test_every_problem_of_a_json_document_is_a_value_error_of_one_line():
    adapter = TypeAdapter(dict[str, list[int]])
    for text in ("", "{", "[" * 10**5, "9" * 5000, b"\xff", '{"a": [1, "x"]}', "[]"):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            validated(adapter, parse_json(text))
    assert validated(adapter, parse_json('{"a": [1]}')) == {"a": [1]}


@EACH
@given(data=st.data())
def test_a_damaged_store_of_rows_is_one_error_or_continues(tmp_path: Path, data):
    outside, folder = tmp_path / "outside.bin", tmp_path / "rows"
    outside.write_bytes(b"precious")
    row = {"x": torch.zeros(2, 3), "ids": torch.arange(2)}
    with open_row_store(folder, {"weights": "w", "keep": 0.5}, batch=1, restart=True) as store:
        for video in VIDEOS:
            store.add(video, row if video != "b.mp4" else "empty file")
    name = data.draw(st.sampled_from(["plan.json", "shapes.json", "journal.jsonl", "x.bin"]))
    content = (folder / name).read_bytes()
    changed = damaged_json(json.loads(content)) if name.endswith(".json") else damaged_bytes(content)
    if name == "shapes.json" and data.draw(st.booleans()):
        changed = st.just(json.dumps({"../outside": ["<f4", [1]]}).encode())
    (folder / name).write_bytes(data.draw(changed))
    with suppress(RecipeError), open_row_store(folder, {"weights": "w", "keep": 0.5}, batch=1) as store:
        store.check_videos(VIDEOS)
        for video in VIDEOS[len(store.samples) :]:
            store.add(video, row)
        assert len(store.samples) == len(VIDEOS)
        store.arrays()
    assert outside.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"outside.bin", "rows"}


@EACH
@given(data=st.data())
def test_a_damaged_journal_of_a_check_is_one_error_or_has_inspections(tmp_path: Path, data):
    file, adapter = tmp_path / "checked.jsonl", TypeAdapter(Inspection)
    entry = {"path": "c\udce9.mp4", "size": 9, "frames": 3, "seconds": 0.5, "content": "0" * 32}
    with open_journal(file, entry=adapter, fix="remove it", restart=True) as journal:
        journal.add([validated(adapter, entry)] * 2)
    first, *others = file.read_bytes().splitlines(keepends=True)
    document = json.loads(first)
    kinds = [damaged_json(document).map(lambda text: text + b"\n"), damaged_bytes(first)]
    file.write_bytes(b"".join([data.draw(st.one_of(kinds)), *others]))
    with suppress(RecipeError), open_journal(file, entry=adapter, fix="remove it") as journal:
        for inspection in journal.entries:
            assert isinstance(inspection.path, str)
            assert isinstance(inspection.frames, int)
            assert inspection.frames >= 0


@EACH
@given(data=st.data())
def test_damaged_files_of_a_run_are_one_error(tmp_path: Path, data):
    run = RunFolder(tmp_path)
    run.write_bad_videos({"a,b.mp4": 'a "reason"', "c\udce9.mp4": "empty file"})
    content = (tmp_path / "bad_videos.csv").read_bytes()
    (tmp_path / "bad_videos.csv").write_bytes(data.draw(damaged_bytes(content)))
    with suppress(DataError):
        assert all(isinstance(reason, str) for reason in run.bad_videos().values())
    (tmp_path / "env.json").write_bytes(data.draw(damaged_json({"plan": {"steps": 3}})))
    with suppress(RecipeError):
        assert isinstance(run.environment(), dict)
    rows = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    (tmp_path / "metrics.jsonl").write_bytes(data.draw(damaged_bytes(rows)) + b"\n")
    assert all(isinstance(row["step"], int) for row in run.rows())
    marker = {"pid": os.getpid(), "host": os.uname().nodename}
    (tmp_path / "running.json").write_bytes(data.draw(damaged_json(marker)))
    assert running_here(tmp_path) is None or running_here(tmp_path) > 0


def test_a_run_with_a_damaged_list_of_unreadable_videos_says_how_to_resume(clip_files: Path, tmp_path: Path):
    command = ["pretrain", "--recipe", small_recipe(tmp_path, clip_files), "-o", tmp_path / "run", "-q"]
    called(*command)
    damaged = tmp_path / "run" / "bad_videos.csv"
    damaged.write_text("path\na.mp4\n")
    message = refused(*command, code=4)
    line = f"error: {damaged}: damaged (not a table with the columns path and reason); remove it, and"
    assert message.splitlines()[-1].startswith(line)
    damaged.unlink()
    called(*command)


def test_a_list_of_unreadable_videos_is_read_back(tmp_path: Path):
    reasons = {"a,b.mp4": 'a "reason"', "c\udce9.mp4": "one\nand two", "d.mp4": ""}
    RunFolder(tmp_path).write_bad_videos(reasons)
    assert RunFolder(tmp_path).bad_videos() == reasons
