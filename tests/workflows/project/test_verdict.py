"""The lines for people: how good a model is, and what to do next."""

from pathlib import Path
from typing import Any

from small_projects import NETWORK_ROW, RESULT

from everest.config.recipe import load_recipe
from everest_workflows.project.request import Request
from everest_workflows.project.result import ClassTest, MeasuredTest
from everest_workflows.project.train import list_next_commands
from everest_workflows.project.verdict import judge, list_results


def test_a_model_that_is_no_better_than_a_simple_answer_is_told_so():
    numbers = RESULT | {"metric": "mae", "mae": 1.0, "chance": 2.0, "majority": None, "majority_class": None}
    numbers |= {"linear_pixels": 1.5, "interval": [0.5, 1.5], "groups": 20}
    for result, sentence in (
        (RESULT | {"top1": 60.0}, "always predicting 'run' (60.0 %)"),
        (RESULT | {"top1": 70.0}, "a linear model on small images (70.0 %)"),
        (RESULT | {"top1": 70.0, "candidates": [NETWORK_ROW]}, ", or train longer (--set finetune.steps)"),
        (RESULT | {"top1": 70.0, "groups": 2}, "--folds 5 and a new --output"),
        (RESULT, "clearly better than a linear model on small images (70.0 %): the interval is 80 to 97"),
        (RESULT | {"difference": [-2.0, 30.0]}, "the interval of the difference is -2 to 30; test on all"),
        (RESULT | {"groups": 5}, "(70.0 %): only 5 groups; test on all videos with --folds 5"),
        (RESULT | {"interval": [59.0, 99.0]}, "the interval includes"),
        (RESULT | {"interval": None, "groups": 1}, "has only one group; test on all videos with --folds 5"),
        (RESULT | {"interval": None}, "no interval: a class has fewer than 5 videos in the test; label"),
        (RESULT | {"interval": None, "difference": [1.0, 9.0]}, "clearly better than a linear model"),
        (RESULT | {"majority": 100.0, "top1": 100.0}, "the test has videos of 'run' only: test on all"),
        (numbers | {"mae": 2.0}, "no better than guessing (2): label"),
    ):
        assert sentence in judge(MeasuredTest.of(result), possible_folds=5)
    linear_only = judge(MeasuredTest.of(RESULT | {"top1": 70.0}), possible_folds=5)
    assert linear_only.endswith("the rarest classes first")
    one_group = MeasuredTest.of(RESULT | {"interval": None, "groups": 1})
    assert "one group; label videos of more groups" in judge(one_group, possible_folds=None)


def test_a_class_names_the_group_where_most_of_its_videos_are_missed():
    facts: dict[str, Any] = {"recall": 98.2, "precision": 100.0, "interval": None, "prevalence": 51.2}
    row = ClassTest(name="franka", **facts, worst_group="shift09", worst=[6, 7])
    assert row.line("videos").startswith("franka: 98.2 % found, worst shift09 (6 of 7), 100.0 % of its")


def test_the_verdict_says_once_what_all_intervals_are_about():
    few = list_results(MeasuredTest.of(RESULT | {"groups": 5}))
    assert few[1].endswith("places or cameras; wide, because 5 groups are few")
    assert sum("are few" in line for line in few) == 1
    many = list_results(MeasuredTest.of(RESULT | {"groups": 12}))
    assert many[1].endswith("groups like these, not over other kinds of animals, places or cameras")
    alone = list_results(MeasuredTest.of(RESULT | {"interval": None}))
    assert not any(line.startswith("intervals") for line in alone)
    found: dict[str, Any] = {"name": "run", "prevalence": 50.0, "recall": 100.0, "precision": 90.0}
    perfect = list_results(MeasuredTest.of(RESULT | {"behaviors": [found | {"interval": [69.0, 100.0]}]}))
    assert "wider for a class without a mistake, where it is that of the binomial distribution" in perfect[1]
    of_frames = list_results(MeasuredTest.of(RESULT | {"frames": 1, "warnings": ["classes differ"]}))
    assert of_frames[2].endswith("a linear model on small images 70.0 % (of the same 1 frame)")
    assert of_frames[3] == "warning: classes differ"
    compared = list_results(MeasuredTest.of(RESULT | {"candidates": [NETWORK_ROW | {"validation": 75.0}]}))
    assert any(line.endswith("looks too good to publish") for line in compared)


def test_the_next_command_writes_the_kind_of_the_annotations_and_folds_name_the_members_of_a_mean(tmp_path):
    (tmp_path / "b.boris").write_text('{"observations": {}, "behaviors_conf": {}}')
    (tmp_path / "t.csv").write_text("video,start,end,label\n")
    timelines = {"frame_accuracy": 1.0, "majority_accuracy": 1.0, "mean_class_accuracy": 1.0, "f1@50": None}
    timelines |= {"recordings": [], "figure": "", "smooth": 2.0}
    mean = {"chosen": "mean", "members": ["linear-images", "network"]}
    test, recipe = MeasuredTest.of(RESULT | timelines | mean), load_recipe("small")
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
