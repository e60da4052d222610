"""Alarms against a normal class: their scores, threshold, bound per day and recall."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta
from small_projects import BY_PERSON, moving
from small_runs import called, json_of, refused

import everest
from everest.config.heads import Alarm, Head
from everest.metrics.faults import score_faults
from everest.metrics.predictions import HeadPredictions
from everest.system.weights_header import read_header
from everest_workflows.project.alarm_rates import choose_alarm, count_independent, draw_alarms, measure_alarms

NAMES = ["ok", "jam", "tear"]
HEAD = Head(outputs=3)
MULTI = Head(task="multi-label", outputs=2)


def predicted(faults: list[float], labels: list[int]) -> HeadPredictions:
    """Predictions whose score of a fault is given; all of it is for jam."""
    outputs = np.array([[1 - fault, fault, 0] for fault in faults], np.float32)
    return HeadPredictions(head=HEAD, labels=np.array(labels), outputs=outputs[:, None])


def test_the_score_is_one_minus_the_normal_class_or_the_most_probable_of_several_labels():
    outputs = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    assert score_faults(outputs, HEAD, NAMES, "ok").tolist() == pytest.approx([0.3, 0.9])
    assert score_faults(outputs, HEAD, NAMES, "jam").tolist() == pytest.approx([0.8, 0.7])
    labels = np.array([[0.2, 0.4], [0.9, 0.1]], np.float32)
    assert score_faults(labels, MULTI, NAMES[1:], "ok").tolist() == pytest.approx([0.4, 0.9])
    assert score_faults(labels, MULTI, NAMES[1:], "jam").tolist() == pytest.approx([0.4, 0.1])


def test_the_threshold_has_the_highest_f1_of_faults_on_unseen_clips():
    outputs = predicted([0.1, 0.3, 0.6, 0.9], [0, 0, 1, 2]).means
    outputs = np.concatenate([outputs, np.full((1, 3), np.nan, np.float32)])  # of a clip that it learned from
    alarm = choose_alarm(outputs, np.array([0, 0, 1, 2, 0]), HEAD, NAMES, "ok")
    assert alarm == Alarm(normal="ok", threshold=pytest.approx(0.45))


def test_false_alarms_are_bounded_per_day_and_recall_is_of_each_fault():
    part = predicted([0.1] * 109 + [0.6] + [0.7, 0.4, 0.95], [0] * 110 + [1, 1, 2])
    groups = [f"clip{number}" for number in range(113)]
    rows = measure_alarms(part, NAMES, groups, Alarm(normal="ok", threshold=0.65), seconds=2)
    assert [row.threshold for row in rows] == [0.5, 0.65, 0.8, 0.9, 0.95, 0.99]
    low, chosen, *_ = rows
    assert (low.false, chosen.false, low.normal_clips) == (1, 0, 110)
    assert low.per_day == pytest.approx(43_200 / 110)
    assert low.bound_per_day == pytest.approx(43_200 * beta.ppf(0.95, 2, 109))
    assert chosen.bound_per_day == pytest.approx(43_200 * (1 - 0.05 ** (1 / 110)))  # 1,160 a day
    assert low.recall == {"jam": 50, "tear": 100}
    assert (low.worst_group, low.worst) == ("clip109", [1, 1])


@pytest.mark.parametrize(
    ("labels", "threshold"), [([0, 0, 1, 1], 0.97), ([0, 0, 0, 0], 0.5), ([0, 1, 1, 1], 0.5)]
)
def test_the_figure_of_alarms_is_drawn_also_without_alarms_or_faults(
    tmp_path: Path, labels: list[int], threshold: float
):
    part, alarm = predicted([0.1, 0.2, 0.6, 0.9], labels), Alarm(normal="ok", threshold=threshold)
    rows = measure_alarms(part, NAMES, ["a", "b", "c", "d"], alarm, seconds=2)
    draw_alarms(tmp_path / "a.png", part, NAMES, alarm, rows, seconds=2)  # a warning would be an error
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_clips_of_a_group_that_are_all_alike_count_as_one():
    groups = np.repeat([f"shift{number}" for number in range(11)], 10)
    alike = np.repeat(np.linspace(0, 1, 11), 10)
    assert count_independent(alike, groups) == pytest.approx(11)
    assert count_independent(np.tile([0.0, 1.0], 55), groups) == 110  # groups have nothing in common
    assert count_independent(alike, np.arange(110).astype(str)) == 110
    part = predicted(alike.tolist(), [0] * 110)
    *_, row = measure_alarms(part, NAMES, groups.tolist(), Alarm(normal="ok", threshold=1.0), seconds=1)
    assert row.bound_per_day == pytest.approx(86_400 * beta.ppf(0.95, 2, 10))
    assert (row.worst_group, row.worst) == ("shift10", [10, 10])


def test_train_stores_the_threshold_in_the_weights_and_shows_alarms(class_folders: Path, tmp_path: Path):
    command = ["train", class_folders, "-o", tmp_path / "run", "--folds", 4, "--model", "linear", *BY_PERSON]
    document = json_of(*command, "--normal", "right")
    row = next(each for each in document["alarms"] if each["threshold"] == document["threshold"])
    assert row["normal_clips"] == 8
    assert [*row["recall"]] == ["down"]
    stored = {"normal": "right", "threshold": document["threshold"]}
    assert read_header(Path(document["checkpoint"])).settings["heads"][0]["alarm"] == stored
    model = everest.load_model(document["checkpoint"])
    assert model.heads[0].alarm == Alarm(**stored)
    page = Path(document["report"]).read_text()
    assert "<h3>Alarms</h3>" in page
    shown = called(*command, "--normal", "right").stdout
    assert "alarms at threshold" in shown
    assert "95 % bound per day" in shown
    assert f"everest export {tmp_path / 'run'} --to onnx" in shown
    video = next((class_folders / "down").iterdir())
    found = json_of("timeline", video, "-c", tmp_path / "run", "--window", 1, "--normal", "right")
    assert found["alarms"]["threshold"] == document["threshold"]
    assert "made with other options" in refused(*command, code=2)


def test_an_empty_cell_of_a_list_with_several_labels_is_normal(tmp_path: Path):
    rows = ["path,label,group"]
    steps = {"down": (2, 0), "right": (0, 2), "": (0, 0)}
    for number in range(15):
        label = [*steps][number % 3]
        moving(tmp_path / "videos" / f"{number}.mp4", 16 * [steps[label]], number)
        rows.append(f"{number}.mp4,{label},p{number % 5}")
    (tmp_path / "videos" / "clips.csv").write_text("\n".join(rows) + "\n")
    command = ["train", tmp_path / "videos" / "clips.csv", "-o", tmp_path / "run", "--model", "linear"]
    assert "--task multi-label" in refused(*command, code=4)
    options = ["--task", "multi-label", "--normal", "ok", "--folds", 3]
    document = json_of(*command, *options, *BY_PERSON[2:])
    assert {row["normal_clips"] for row in document["alarms"]} == {5}
    assert [*document["alarms"][0]["recall"]] == ["down", "right"]


def test_a_normal_class_that_the_model_lacks_is_refused(class_folders: Path, tmp_path: Path):
    options = ["-o", tmp_path / "run", "--normal", "ok", "--model", "linear", *BY_PERSON]
    assert "--normal: 'ok' is not a class of the model (down, right)" in refused(
        "train", class_folders, *options, code=2
    )
    assert not (tmp_path / "run" / "project.json").exists()
