import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import everest as everest_process
from small_runs import called, json_of, refused, run
from task_runs import COLUMNS, NAMES, SCORES, write_list

import everest
from everest.config.heads import Head, named_heads
from everest.evaluation.metric_text import metric_rows
from everest.evaluation.report import worst_videos
from everest.figures.timeline import draw_task_timeline
from everest.inference.bouts import Window, bouts_of_classes, merge_windows
from everest.inference.top_classes import answers_of_head
from everest.lists.classes import Classes
from everest.metrics.predicted import HeadPredictions
from everest_cli.prediction_text import as_csv, as_srt, as_table

FLAGS = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
SHARES = np.array([[0.9, 0.2, 0.1], [0.1, 0.6, 0.7], [0.3, 0.1, 0.2], [0.8, 0.9, 0.1]], dtype=np.float32)
TAGGED = Head(task="multi-label", outputs=3)
SEVERAL = HeadPredictions(head=TAGGED, labels=FLAGS, outputs=SHARES[:, None])  # one view a video


def test_the_worst_videos_of_each_task_come_first():
    found = worst_videos(SEVERAL, NAMES, most=9)
    losses = -np.log(np.where(FLAGS, SHARES, 1 - SHARES)).mean(axis=1)
    assert [row.number for row in found] == [i for i in np.argsort(-losses) if i != 3]  # all of d are right
    shown = (found[0].label, found[0].predicted.replace("\N{NO-BREAK SPACE}", " "))
    assert shown == ("no class", f"{NAMES[1]} (60.0 %), {NAMES[2]} (70.0 %)")
    outputs = np.array([[[1.5]], [[2.0]], [[-2.0]]], np.float32)
    number = Head(task="regression", outputs=1)
    head = HeadPredictions(head=number, labels=np.array([1.0, 5.0, -2.0]), outputs=outputs)
    assert worst_videos(head, []) == [(1, "5", "2"), (0, "1", "1.5")]


def test_the_page_of_every_task_has_a_part_for_each_head(mixed_run: Path, tmp_path: Path):
    page = tmp_path / "page"
    result = json_of("eval -q", "-c", mixed_run, "--report", page)
    listed = {name: "per_class" in head for name, head in result["heads"].items()}
    assert listed == {"verb": True, "tags": True, "score": False}
    plots = {"confusion-verb.png", "scatter-score.png"}
    assert {path.name for path in page.iterdir()} == {*plots, "index.html"}
    text = (page / "index.html").read_text()
    assert text.split("<h2>score</h2>")[1].count('class="mistake"') == len(SCORES)
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    table = run("eval", "-c", mixed_run, "-q")
    assert "value" in table
    assert "average precision" in table


def test_groups_of_videos_are_counted_and_few_are_a_notice(scores_run, clip_files, tmp_path):
    listed = write_list(tmp_path / "test.csv", clip_files, label=SCORES, group=("a", "a", "a", "b"))
    options = ["--set", f"data.test={listed}", "--report", tmp_path / "page"]
    ended = called("eval", "-c", scores_run, *options)
    assert "4, from 2 groups" in ended.stdout
    notice = "data.test has 2 groups of videos; with fewer than 10, the intervals are too narrow"
    assert notice in ended.stderr
    assert "the groups of videos are drawn again" in (tmp_path / "page" / "index.html").read_text()
    write_list(listed, clip_files, label=SCORES, group=("a",) * 4)
    ended = called("eval", "-c", scores_run, *options, "--overwrite", "--json")
    assert "all videos of data.test are of one group: the metrics have no intervals" in ended.stderr
    assert "intervals" not in json.loads(ended.stdout)
    page = (tmp_path / "page" / "index.html").read_text()
    assert "All videos are of one group" in page
    assert "drawn again" not in page


@pytest.mark.slow
def test_metrics_of_every_task_do_not_depend_on_the_number_of_processes(mixed_run, clip_files, tmp_path):
    listed = write_list(tmp_path / "test.csv", clip_files, **COLUMNS["mixed"])
    listed.write_text(listed.read_text() + f"{clip_files}/clip0.mp4,1,2,7\n")  # five do not divide by two
    found = []
    for processes in (1, 2):
        options = ["--set", f"data.test={listed}", "--gpus", "cpu", "--processes", processes]
        result = json.loads(everest_process("eval", "-c", mixed_run, "--json", "-q", *options).stdout)
        found.append({**result, "seconds": None})
    assert found[0]["videos"] == 5
    assert found[0] == found[1]


def test_predictions_of_several_classes_say_which_are_present(tags_run: Path, clip_files: Path):
    video = clip_files / "clip0.mp4"
    (row,) = json_of("predict -q", video, "-c", tags_run)
    found = row["predictions"]
    assert {each["label"] for each in found} == set(NAMES)
    assert all(each["present"] == (each["probability"] >= 0.5) for each in found)
    assert [row] == everest.predict(everest.load_model(tags_run), video)
    lines = list(csv.DictReader(io.StringIO(run("predict", video, "-c", tags_run, "-q", "--format", "csv"))))
    assert [line["present"] for line in lines] == [str(int(each["present"])) for each in found]
    table = run("predict", video, "-c", tags_run, "-q", "--top", 2)
    assert table.count("%") == 2
    assert table.count("(present)") == sum(each["present"] for each in found[:2])


def test_a_predicted_number_has_a_value_in_every_format(scores_run: Path, clip_files: Path, tmp_path: Path):
    video, plot = clip_files / "clip0.mp4", tmp_path / "t.png"
    (row,) = json_of("predict -q", video, "-c", scores_run)
    (answer,) = row["predictions"]
    model = everest.load_model(scores_run)
    assert list(answer) == ["value"]
    assert abs(answer["value"] - np.mean(SCORES)) < 3 * np.std(SCORES)
    assert f"{answer['value']:.6g}" in run("predict", video, "-c", scores_run, "-q")
    options = ["--timeline", "--window", 0.5, "-q"]
    windows = json.loads(run("predict", video, "-c", scores_run, *options, "--json", "--plot", plot))[0]
    assert windows["bouts"] == []
    assert everest.predict_timeline(model, video, window=0.5) == [windows]
    subtitles = run("predict", video, "-c", scores_run, *options, "--format", "srt").splitlines()
    assert subtitles[2::4] == [f"{each['predictions'][0]['value']:.3g}" for each in windows["windows"]]
    with Image.open(plot) as picture:
        assert picture.width > 1000


def test_options_of_classes_are_refused_for_numbers(scores_run: Path, tags_run: Path, clip_files: Path):
    background = ["--timeline", "--background", 0.5, "--json"]
    for options, message in (
        (["--top", 2], "--top: goes with classes"),
        (["--timeline", "--bouts"], "--bouts: goes with classes"),
        (["--timeline", "--to", "csv", "-o", "bouts.csv"], "--to: goes with classes"),
        (background, "--background: goes with classes"),
    ):
        command = ("predict -q", clip_files / "clip0.mp4", "-c", scores_run, *options)
        assert message in refused(*command, code=2)
    for run_folder, task in ((scores_run, "regression"), (tags_run, "multi-label")):
        other = ["--set=data.task=single-label", "--set=data.num_classes=2"]
        text = refused("eval -q -c", run_folder, *other, code=6)
        assert f"trained with data.task {task}, the recipe has single-label" in text
    text = refused("predict -q", clip_files / "clip0.mp4", "-c", tags_run, *background, code=2)
    assert "--background: is for models with one class per window" in text


def test_a_timeline_of_every_task_has_bouts_for_heads_of_classes(mixed_run, clip_files, tmp_path):
    options = ["--timeline", "--window", 0.5, "-q", "--json", "--plot", tmp_path / "t.png"]
    (row,) = json.loads(run("predict", clip_files / "clip0.mp4", "-c", mixed_run, *options))
    assert list(row["bouts"]) == ["verb", "tags", "score"]
    assert row["bouts"]["verb"]
    assert row["bouts"]["score"] == []
    assert (tmp_path / "t.png").is_file()


@given(present=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=9), step=st.integers(1, 12))
@settings(max_examples=40)
def test_the_bouts_of_a_class_are_those_of_a_timeline_of_this_class(present: list[list[bool]], step: int):
    windows = [
        Window(start=i * step / 8, end=i * step / 8 + 1, first=2 * i * step, length=16)
        for i in range(len(present))
    ]
    times = np.arange(300) / 16
    flags = torch.tensor(present).reshape(-1, 3)
    shares = torch.rand(flags.shape, generator=torch.Generator().manual_seed(0))
    found = bouts_of_classes(windows, shares, flags, NAMES, times)
    assert [(b["start"], b["index"]) for b in found] == sorted((b["start"], b["index"]) for b in found)
    for index, name in enumerate(NAMES):
        best = [
            {"label": name, "index": index if flag else None, "probability": share}
            for flag, share in zip(flags[:, index].tolist(), shares[:, index].tolist(), strict=True)
        ]
        best = [each if each["index"] is not None else {**each, "label": None} for each in best]
        alone = merge_windows(windows, best, times, background=None)
        assert [b for b in found if b["index"] == index] == [b for b in alone if b["index"] is not None]


def several(start: float, *flags: bool) -> dict:
    classes = [
        {"label": name, "index": i, "probability": 0.9 if flag else 0.1, "present": flag}
        for i, (name, flag) in enumerate(zip(NAMES, flags, strict=True))
    ]
    return {"start": start, "end": start + 1, "predictions": classes}


def test_every_class_that_is_present_is_among_the_predictions():
    head = Head(task="multi-label", outputs=7, chosen_thresholds=(0.1, *[0.9] * 6))
    answers = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    found = answers_of_head(answers, head, Classes(heads=(head,)), None)
    likely = [(index, False) for index in (6, 5, 4, 3, 2)]
    assert [(part["index"], part["present"]) for part in found] == [*likely, (0, True)]
    assert [part["index"] for part in answers_of_head(answers, head, Classes(heads=(head,)), 2)] == [6, 5]


def test_metrics_that_every_model_reaches_are_no_rows():
    result = {"top1": 40.0, "chance_top1": 50.0, "top5": 100.0, "chance_top5": 100.0}
    assert [row[0] for row in metric_rows(result)] == ["top-1"]
    assert [row[0] for row in metric_rows({**result, "chance_top5": 83.3})] == ["top-1", "top-5"]


def test_the_table_of_metrics_names_the_views_of_a_video(classifier_run: Path):
    for clips, crops, views in ((2, 3, "2 clips x 3 crops"), (1, 1, "1 clip x 1 crop")):
        options = ["--set", f"eval.clips={clips}", "--set", f"eval.crops={crops}"]
        header = run("eval", "-c", classifier_run, "-q", *options).splitlines()[1]
        assert header.split("┃")[1].strip() == f"views of a video: {views}"


def test_subtitles_show_the_present_classes_only():
    windows = [several(0, True, False, True), several(0.5, *[False] * 3), several(1, False, True, False)]
    row = {"video": "a.mp4", "windows": windows, "bouts": []}
    assert as_srt([row]).split("\n\n") == [
        "1\n00:00:00,000 --> 00:00:00,500\nrun 90%\nwalk 90%",
        "2\n00:00:01,000 --> 00:00:02,000\nsit 90%\n",
    ]
    assert as_table([row]).count("(present)") == 3
    assert len(as_csv([row]).splitlines()) == 1 + 9


def test_the_lanes_of_each_head_have_the_names_of_its_classes(tmp_path: Path):
    heads = named_heads({"mood": {"multi-label": 2}, "place": {"multi-label": 2}})
    bout = {"start": 0, "end": 2, "index": 0, "probability": 0.5}
    bouts = {"mood": [bout | {"label": "calm"}], "place": [bout | {"label": "lake"}]}
    windows = [{"start": 0, "end": 4, "heads": {}}]
    figure = draw_task_timeline(tmp_path / "t.png", windows, bouts, heads, title="a.mp4")
    names = [panel.get_yticklabels()[0].get_text() for panel in figure.axes]
    assert names == ["calm  2.0 s, 50.0%", "lake  2.0 s, 50.0%"]


def test_nothing_is_cut_on_the_figure_of_a_timeline(tmp_path: Path):
    heads = named_heads({"tags": {"multi-label": 30}, "score": "regression"})
    windows = [{"start": i, "end": i + 1, "heads": {"score": [{"value": i**2}]}} for i in range(40)]
    bouts = [
        {"start": i, "end": i + 2, "label": f"$class_{i} {'x' * i}", "index": i, "probability": 0.5}
        for i in range(30)
    ]
    for shown in (bouts, []):
        draw_task_timeline(tmp_path / "t.png", windows, {"tags": shown, "score": []}, heads, title="$a.mp4")
        with Image.open(tmp_path / "t.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255
