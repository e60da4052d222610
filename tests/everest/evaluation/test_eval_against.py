"""`everest eval --against`: two models on the same videos."""

from pathlib import Path

import numpy as np
from small_runs import called, json_of, refused

from everest.config.heads import Head
from everest.lists.classes import Classes
from everest.lists.groups import find_name_pattern
from everest.metrics.difference import compare_predictions
from everest.metrics.predictions import Predictions

CLASSES = Classes(heads=(Head(outputs=2),), names=("ok", "jam"))


def predicted(classes: list[int], labels: list[int], *, videos: str, groups: str) -> Predictions:
    """Predictions of single classes, by videos and groups of one letter."""
    return Predictions(
        videos=[*videos],
        labels=[(label,) for label in labels],
        outputs=np.eye(2, dtype=np.float32)[classes][:, None],
        skipped=[],
        heads=CLASSES.heads,
        groups=[*groups],
    )


def test_two_models_are_compared_on_the_videos_that_both_read():
    old = predicted([0, 0, 1, 0, 1], [0, 1, 1, 1, 0], videos="abcdx", groups="ggzzz")
    new = predicted([0, 1, 1, 1], [0, 1, 1, 1], videos="abcd", groups="ggzz")
    found = compare_predictions(new, old, CLASSES)
    assert (found["difference_of"], found["difference"], found["compared"]) == ("top1", 50, 4)
    changed = {"label": "jam", "old": "ok", "new": "jam"}
    assert found["changed"] == [{"video": video, **changed} for video in "bd"]
    assert found["interval"][0] <= 50 <= found["interval"][1]
    same = compare_predictions(new, new, CLASSES)
    assert (same["difference"], same["interval"], same["changed"]) == (0, [0, 0], [])
    one = predicted([0, 1], [0, 1], videos="ab", groups="gg")
    assert compare_predictions(one, one, CLASSES)["interval"] is None


def test_names_that_share_a_word_look_like_groups():
    shifts = [f"line2_shift0{number % 3}_00{number}.mp4" for number in range(6)]
    assert find_name_pattern(shifts) == r"_([^\W\d_]+\d+)_"
    assert find_name_pattern(["anna_1.mp4", "anna_2.mp4", "ben_1.mp4"]) == r"^([^\W_]+)"
    assert find_name_pattern(["clip1.mp4", "clip2.mp4"]) is None
    assert find_name_pattern(["a_1.mp4", "b_1.mp4"]) is None


def test_a_checkpoint_is_compared_with_its_exported_file(onnx_file, classifier_run, clip_files):
    listed = clip_files / "train.csv"
    views = ["--set=eval.clips=1", "--set=eval.crops=1"]
    document = json_of("eval", "-c", onnx_file, "--against", classifier_run, "--data", listed, *views)
    assert (document["difference"], document["interval"], document["changed"]) == (0, [0, 0], [])
    assert document["against"].startswith(str(classifier_run))
    shown = called("eval", "-c", classifier_run, "--against", onnx_file, "--data", listed).stdout
    assert "points against" in shown
    assert "changed: " in shown


def test_models_of_other_classes_are_refused(classifier_run: Path, mixed_run: Path, clip_files: Path):
    message = refused("eval", "-c", classifier_run, "--against", mixed_run, "--data", clip_files, code=6)
    assert f"--against {mixed_run}" in message
    assert "the new model 0, 1; compare models of the same single task" in message
