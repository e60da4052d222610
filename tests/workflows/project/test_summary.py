"""The lines for people: how good a model is, and what to do next."""

from pathlib import Path
from typing import Any

from small_projects import RESULT

from everest.config.recipe import load_recipe
from everest_workflows.project.request import Request
from everest_workflows.project.result import MeasuredTest
from everest_workflows.project.summary import class_table, describe_answer, judge
from everest_workflows.project.train import list_next_commands


def test_a_model_is_better_than_the_best_baseline_a_tie_or_worse_or_the_test_cannot_tell():
    numbers = RESULT | {
        "metric": "mae",
        "value": 1.0,
        "chance": 2.0,
        "majority": None,
        "majority_class": None,
    }
    numbers |= {"linear_pixels": 1.5, "interval": [0.5, 1.2]}
    images, of = "a linear model on small images (70.0 %)", "the interval of the difference is"
    more = "; test on all videos with --folds 5 and a new --output"
    for result, sentence in (
        (RESULT, f"clearly better than {images}: the interval is 80 to 97"),
        (RESULT | {"difference": [1.0, 9.0]}, f"clearly better than {images}: {of}"),
        (
            RESULT | {"difference": [-2.0, 30.0]},
            f"{images}: {of} -2 to 30{more}",
        ),
        (
            RESULT | {"difference": [-9.0, -1.0]},
            f"worse than {images}: {of}",
        ),
        (
            RESULT | {"linear_pixels": 50.0},
            "clearly better than always predicting 'run' (60.0 %): ",
        ),
        (RESULT | {"chosen": "linear-images"}, "clearly better than always predicting 'run' (60.0 %)"),
        (RESULT | {"interval": [59.0, 71.0]}, f"no clear difference from {images}"),
        (
            RESULT | {"groups": 5},
            f"is better than {images}: only 5 groups{more}",
        ),
        (RESULT | {"interval": None}, f"{images}: a class has fewer than 5 videos in the test{more}"),
        (numbers, "clearly better than a linear model on small images (1.5): the interval is 0.5 to 1.2"),
        (numbers | {"difference": [0.1, 0.4]}, f"worse than a linear model on small images (1.5): {of}"),
    ):
        assert sentence in judge(MeasuredTest.of(result), possible_folds=5)
    one_group = MeasuredTest.of(RESULT | {"interval": None, "groups": 1})
    assert "only 1 group; label videos of more groups" in judge(one_group, possible_folds=None)


def test_the_table_of_classes_has_f1_support_and_the_group_with_most_misses():
    facts: dict[str, Any] = {"recall": 80.0, "precision": 100.0, "interval": [60.0, 97.5], "prevalence": 50.0}
    row = {"name": "franka", **facts, "worst_group": "runs/shift09", "worst": [6, 7]}
    titles, rows = class_table(MeasuredTest.of(RESULT | {"behaviors": [row]}))
    assert titles == ("class", "recall", "95 % CI", "precision", "F1", "videos", "worst group")
    assert rows == [("franka", "80.0 %", "60 to 97.5 %", "100.0 %", "88.9 %", "10", "shift09 (6 of 7)")]


def test_the_answer_has_the_interval_and_the_baselines():
    answer = describe_answer(MeasuredTest.of(RESULT | {"groups": 5, "frames": 1}))
    assert answer.startswith(
        "accuracy 90.0 % (95 % CI: 80 to 97) on 20 test videos of 5 groups; chance 50.0 %"
    )
    assert answer.endswith("always 'run' 60.0 %, a linear model on small images 70.0 % (of the same 1 frame)")
    assert "CI" not in describe_answer(MeasuredTest.of(RESULT | {"interval": None}))


def test_the_next_command_writes_the_kind_of_the_annotations_and_folds_name_the_members_of_a_mean(tmp_path):
    (tmp_path / "b.boris").write_text('{"observations": {}, "behaviors_conf": {}}')
    (tmp_path / "t.csv").write_text("video,start,end,label\n")
    timelines = {"frame_accuracy": 1.0, "majority_accuracy": 1.0, "mean_class_accuracy": 1.0, "f1@50": None}
    timelines |= {"recordings": [], "figure": "", "smooth": 2.0}
    mean = {"chosen": "mean", "members": ["linear-images", "network"]}
    test, recipe = MeasuredTest.of(RESULT | mean | {"timelines": timelines}), load_recipe("small")
    for names, file in ((["b.boris"], "bouts.boris"), (["b.boris", "t.csv"], "bouts.csv")):
        request = Request(videos="", annotations=[str(tmp_path / name) for name in names])
        (command,) = list_next_commands(request, test, recipe, Path("runs/r"))
        assert command.endswith(f"--smooth 2 --output {file}")
    of_cpu = list_next_commands(
        Request(videos="", latency=40), MeasuredTest.of(RESULT), recipe, Path("runs/r")
    )
    assert ["int8" in command for command in of_cpu] == [False, True]
    assert test.choice == "mean of linear-images and network"
    assert MeasuredTest.of(RESULT).choice == "network"
