"""Timelines by an exported file: the windows, the outputs and the alarms of the weights that it came from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import called, json_of, refused, run

pytest.importorskip("onnxruntime")


def outputs_of(rows: list[dict]) -> np.ndarray:
    """The probabilities of all windows, in the order of the classes."""
    windows = [window for row in rows for window in row["windows"]]
    ranked = [sorted(window["predictions"], key=lambda each: each["index"]) for window in windows]
    return np.array([[each["probability"] for each in predictions] for predictions in ranked])


def test_an_exported_file_gives_the_timeline_of_its_weights(onnx_file, classifier_run, clip_files):
    videos = [clip_files / "clip0.mp4", clip_files / "clip1.mp4"]
    for options in ([], ["--window", 0.5, "--step", 0.25]):
        rows, expected = (
            json_of("timeline", *videos, "-c", each, *options) for each in (onnx_file, classifier_run)
        )
        times = [
            [(window["start"], window["end"]) for row in part for window in row["windows"]]
            for part in (rows, expected)
        ]
        assert times[0] == times[1]
        assert np.abs(outputs_of(rows) - outputs_of(expected)).max() <= 1e-4


def test_an_exported_file_has_the_windows_and_groups_of_its_training(classifier_run, clip_files, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(classifier_run, project / "finetune")
    facts = {"window": 0.75, "request": {"group": r"(clip\d)"}}
    (project / "project.json").write_text(json.dumps(facts))
    file, video = tmp_path / "m.onnx", clip_files / "clip1.mp4"
    run("export", project, "--to", "onnx", "-o", file)
    shutil.rmtree(project)
    shown = called("timeline", video, "-c", file, "-o", tmp_path / "bouts.csv", "--window", 0.75).stderr
    assert "next: everest budget" in shown
    shown = called("timeline", video, "-c", file).stderr
    assert "windows of 0.75 s, as trained, every 0.1875 s" in shown


def test_options_that_an_exported_file_cannot_follow_are_refused(onnx_file, classifier_run, clip_files):
    command = ["timeline", clip_files / "clip0.mp4", "-c", onnx_file]
    recipe = classifier_run / "recipe.yaml"
    for option in ("--keep=0.5", f"--recipe={recipe}", "--which=newest", "--gpus=1"):
        message = refused(*command, option, code=2)
        assert message.startswith(
            f"error: {option.split('=')[0]}: {onnx_file} is exported and runs on the CPU"
        )
    assert "no such checkpoint" in refused(*command[:-1], Path("missing.onnx"), code=6)
