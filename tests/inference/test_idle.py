"""Windows in which nothing moves: their motion, what is skipped, and the bound of an audit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from small_runs import called, json_of, refused, run, small_recipe
from task_runs import task_run

from everest.inference.idle import audited, window_motion
from everest.video.writer import write_video


@pytest.fixture(scope="module")
def half_still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which nothing moves, and two in which a square does; 16 frames a second."""
    frames = torch.full((64, 48, 64, 3), 60, dtype=torch.uint8)
    for number in range(32, 64):
        frames[number, 10:26, number - 30 : number - 14] = 220
    path = tmp_path_factory.mktemp("still") / "half.mp4"
    write_video(path, frames, fps=16)
    return path


def test_the_motion_is_that_of_the_patch_that_changes_most():
    views = torch.zeros(3, 1, 3, 2, 32, 48, dtype=torch.uint8)
    views[1, 0, :, 1, :16, 16:32] = 30  # a whole patch
    views[2, 0, :, 1, 20:28, 4:12] = 100  # a quarter of a patch
    assert window_motion(views).tolist() == [0, 30, 25]


def test_still_windows_are_skipped_and_have_no_class(classifier_run: Path, half_still: Path):
    command = ("predict", half_still, "-c", classifier_run, "--timeline", "--window", 0.5, "--bouts")
    (plain,) = json_of(*command, "-q")
    (row,) = json_of(*command, "-q", "--idle-below", 5)
    still, moving = row["windows"][:4], row["windows"][4:]
    assert all(window["predictions"] == [] and window["motion"] < 5 for window in still)
    assert [window["predictions"] for window in moving] == [
        one["predictions"] for one in plain["windows"][4:]
    ]
    assert row["idle"] | {"seconds_saved": 0} == {"below": 5, "windows": 8, "skipped": 4, "seconds_saved": 0}
    assert row["idle"]["seconds_saved"] > 0
    first, *others = row["bouts"]
    assert (first["start"], first["end"], first["label"]) == (0, 2, None)
    assert all(bout["label"] is not None for bout in others)
    shown = called(*command[:-1], "--idle-below", 5)
    assert "skipped 4 of 8 windows because nothing moves in them; that saved about" in shown.stderr
    assert "0.00 to     0.50 s  skipped: the motion is 0.00" in shown.stdout


def test_an_audit_runs_skipped_windows(classifier_run: Path, half_still: Path):
    command = ("predict", half_still, "-c", classifier_run, "--timeline", "--window", 0.5, "--idle-below", 5)
    (row,) = json_of(*command, "--audit", 3, "--background", 0)  # every window has a class
    audit, found = row["idle"]["audit"], len(row["bouts"]) - 1  # one without a class
    assert (audit["windows"], audit["with_class"], audit["share_at_most"]) == (3, 3, 1)
    assert audit["missed_bouts_at_most"] == pytest.approx(4 / (4 + found), abs=1e-6)
    (row,) = json_of(*command, "--audit", 9, "--background", 1)
    audit = row["idle"]["audit"]
    assert (audit["windows"], audit["with_class"]) == (4, 0)
    assert audit["share_at_most"] == pytest.approx(1 - 0.05 ** (1 / 4), abs=1e-6)


def test_the_bound_is_that_of_clopper_and_pearson():
    assert audited(0, 100, skipped=1000, bouts=50, most=1)["share_at_most"] == pytest.approx(
        3 / 100, rel=0.02
    )
    for found, windows in ((0, 10), (2, 40), (7, 60)):
        bound = audited(found, windows, skipped=500, bouts=20, most=1)["share_at_most"]
        assert binom.cdf(found, windows, bound) == pytest.approx(0.05, abs=1e-4)
    result = audited(0, 59, skipped=200, bouts=30, most=1)
    missed = result["share_at_most"] * 200
    assert result["missed_bouts_at_most"] == pytest.approx(missed / (missed + 30), abs=1e-4)
    several = audited(0, 59, skipped=200, bouts=30, most=4)["missed_bouts_at_most"]
    assert several == pytest.approx(4 * missed / (4 * missed + 30), abs=1e-4)


def test_a_skipped_window_of_several_heads_can_hide_a_bout_of_each(
    tmp_path: Path, clip_files: Path, half_still: Path
):
    model = task_run(tmp_path, clip_files, "heads")
    command = ("predict", half_still, "-c", model, "--timeline", "--window", 0.5, "--idle-below", 5)
    (row,) = json_of(*command, "--audit", 4, "--background", 0)
    assert [window["heads"] for window in row["windows"][:4]] == [{}] * 4
    found = sum(bout["label"] is not None for bouts in row["bouts"].values() for bout in bouts)
    assert row["idle"]["audit"]["missed_bouts_at_most"] == pytest.approx(8 / (8 + found), abs=1e-6)
    assert "skipped: the motion is" in run(*command)


def test_a_video_in_which_nothing_moves_is_not_said_to_be_below_the_background(
    classifier_run: Path, half_still: Path
):
    command = ("predict", half_still, "-c", classifier_run, "--timeline", "--window", 0.5)
    assert "all is background" not in called(*command, "--idle-below", 255).stderr
    assert "all is background" in called(*command, "--bouts", "--background", 1).stderr


def test_clips_of_one_frame_show_no_motion(tmp_path: Path, clip_files: Path, half_still: Path):
    one = ("--set", "data.frames=1", "--set", "model.tubelet=[1,8,8]", "-q")
    recipe = small_recipe(tmp_path, clip_files)
    called("finetune --init none", "--recipe", recipe, *one, "-o", tmp_path / "run")
    options = ("-c", tmp_path / "run", "--timeline", "--window", 0.5)
    message = refused("predict", half_still, *options, "--idle-below", 5, code=2)
    assert "--idle-below: the clips of this model have one frame" in message
