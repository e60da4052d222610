import base64
import csv
import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from processes import everest as everest_process
from small_runs import called, json_of, refused, run, sets, small_recipe
from task_runs import COLUMNS, NAMES, SCORES, write_list

import everest
from everest.evaluation.plots import draw_confusion, shorten_names
from everest.metrics.names import metric_rows


def test_long_names_stay_distinct_on_the_axes():
    names = [f"putting something similar to other things number {i} on the table" for i in range(174)]
    short = shorten_names(names)
    assert len(set(short)) == 174
    assert max(map(len, short)) <= 32
    assert shorten_names(["run", "sit"]) == ["run", "sit"]


@pytest.mark.parametrize("count", [2, 31, pytest.param(400, marks=pytest.mark.slow)])
def test_a_confusion_matrix_grows_with_its_classes_and_no_label_is_cut(tmp_path: Path, count: int):
    for name in ("putting something similar to other things number {i} on the table", "$class {i} {x}"):
        names = [name.format(i=i, x="x" * i) for i in range(count)]
        draw_confusion(tmp_path / "m.png", np.eye(count, dtype=np.int64), names, noun="video")
        with Image.open(tmp_path / "m.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255  # all around is white
        assert min(pixels.shape) > 10 * count  # pixels for each name
        assert pixels.shape[1] > 300 + 9 * count


def test_the_shade_of_a_confusion_is_proportional_to_its_fraction(tmp_path: Path):
    draw_confusion(tmp_path / "m.png", np.array([[1, 3], [0, 4]]), ["run", "sit"], noun="video")
    with Image.open(tmp_path / "m.png") as picture:
        _, shades = zip(*sorted(picture.convert("RGB").getcolors(2**20))[-6:], strict=True)
    assert {tuple(color) for color in colormaps["Blues"]([0.25, 0.75], bytes=True)[:, :3]} <= set(shades)


def test_the_page_and_the_predictions_file_agree(classifier_run: Path, tmp_path: Path):
    page, table = tmp_path / "page", tmp_path / "predictions.csv"
    options = ["--report", page, "--predictions", table]
    document = json_of("eval -q", "-c", classifier_run, *options)
    assert document["report"] == str(page / "index.html")
    assert sorted(path.name for path in page.iterdir()) == ["confusion.png", "index.html"]
    text = (page / "index.html").read_text()
    wrong = [row for row in csv.DictReader(table.read_text().splitlines()) if row["correct"] == "0"]
    assert text.count('class="mistake"') == len(wrong)
    assert all(row["video"] in text for row in wrong)
    low, high = document["intervals"]["top1"]
    shown = [document["top1"], low, high, document["chance_top1"], document["majority_top1"]]
    table = text.split('id="metrics"')[1].split("</table>")[0]
    assert all(f"{value:.1f}" in table for value in shown)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text  # no other script can run
    assert f"{document['top1']:.1f} %</td>" in table
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # no other file, no network
    assert not list(metric_rows({"top5": 100.0, "chance_top5": 62.5}))  # of eight classes it says little


def test_names_of_classes_are_text_and_no_markup(clip_files: Path, tmp_path: Path):
    rows = [f"{clip_files}/clip{i}.mp4,{'<b>bold & $ly</b>' if i % 2 else 'plain'}\n" for i in range(4)]
    (tmp_path / "train.csv").write_text("".join(rows))
    recipe = small_recipe(tmp_path, tmp_path, {"num_classes: 2": "num_classes: null"})
    run("finetune --init none", "--recipe", recipe, "-o", tmp_path / "run")
    run("eval", "-c", tmp_path / "run", "-q", "--report", tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text()
    assert "&lt;b&gt;bold &amp; $ly&lt;/b&gt;" in text
    assert "<b>bold" not in text


def test_unreadable_videos_are_on_the_page(classifier_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "broken.mp4").write_text("no video")
    lines = [f"{clip_files}/clip{i}.mp4 {i % 2}\n" for i in range(4)] + [f"{tmp_path}/broken.mp4 0\n"]
    (tmp_path / "list.csv").write_text("".join(lines))
    listed = ["--set", f"data.test={tmp_path}/list.csv"]
    document = json_of("eval -q", "-c", classifier_run, *listed, "--report", tmp_path / "page")
    assert (document["videos"], document["skipped"]) == (4, 1)
    assert "broken.mp4" in (tmp_path / "page" / "index.html").read_text().split('id="skipped"')[1]


def test_a_video_that_cannot_be_waited_for_ends_a_short_evaluation(classifier_run: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer
    (tmp_path / "list.csv").write_text(f"{tmp_path}/pipe.mp4 0\n")
    settings = (f"data.test={tmp_path}/list.csv", "train.workers=1", "train.data_timeout=1")
    error = refused("eval -q", "-c", classifier_run, *sets(*settings), code=4)
    assert "no clip within 1 s" in error


def test_nothing_is_replaced_by_default(classifier_run: Path, tmp_path: Path):
    page, table = tmp_path / "page", tmp_path / "predictions.csv"
    page.mkdir()
    (page / "thesis.txt").write_text("precious")
    table.write_text("precious")
    assert "holds other files" in refused("eval", "-c", classifier_run, "-q", "--report", page, code=2)
    assert "exists" in refused("eval", "-c", classifier_run, "-q", "--predictions", table, code=2)
    assert table.read_text() == "precious"
    run("eval", "-c", classifier_run, "-q", "--report", page, "--predictions", table, "--overwrite")
    assert (page / "thesis.txt").read_text() == "precious"
    assert (page / "index.html").is_file()
    assert table.read_text().startswith("video,")


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
    assert re.search("(?s)value.*average precision", run("eval", "-c", mixed_run, "-q"))


def test_groups_of_videos_are_counted_and_few_are_a_notice(scores_run, clip_files, tmp_path):
    listed = write_list(tmp_path / "test.csv", clip_files, label=SCORES, group=("a", "a", "a", "b"))
    options = ["--set", f"data.test={listed}", "--report", tmp_path / "page"]
    ended = called("eval", "-c", scores_run, *options)
    assert "4, from 2 groups" in ended.stdout
    notice = "data.test has 2 groups of videos; with fewer than 10, the intervals are wide"
    assert notice in ended.stderr
    told = "groups of videos are sampled again(?s:.*)fewer than\\s+10 groups of videos, it is wider"
    assert re.search(told, (tmp_path / "page" / "index.html").read_text())
    write_list(listed, clip_files, label=SCORES, group=("a",) * 4)
    ended = called("eval", "-c", scores_run, *options, "--overwrite", "--json")
    assert "all videos of data.test are of one group: the metrics have no intervals" in ended.stderr
    assert "intervals" not in json.loads(ended.stdout)
    assert "All videos are of one group" in (page := (tmp_path / "page" / "index.html").read_text())
    assert "sampled again" not in page


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
    options = ["-c", scores_run, "--window", 0.5, "-q"]
    (windows,) = json.loads(run("timeline", video, *options, "--json", "--plot", plot))
    assert windows["bouts"] == []
    assert everest.timeline(model, video, window=0.5).to_rows() == [windows]
    lines = run("timeline", video, *options).splitlines()
    values = [f"{each['predictions'][0]['value']:.6g}" for each in windows["windows"]]
    assert [line.split()[-1] for line in lines[1:]] == values
    with Image.open(plot) as picture:
        assert picture.width > 1000


def test_options_of_classes_are_refused_for_numbers(scores_run: Path, tags_run: Path, clip_files: Path):
    for command, options, message in (
        ("predict", ["--top", 2], "--top: this model predicts numbers, not classes"),
        ("timeline", ["-o", "bouts.csv"], "--to csv: needs classes, but this model predicts numbers"),
    ):
        words = (command, clip_files / "clip0.mp4", "-q", "-c", scores_run, *options)
        assert message in refused(*words, code=2)
    for run_folder, task in ((scores_run, "regression"), (tags_run, "multi-label")):
        other = ["--set=data.task=single-label", "--set=data.num_classes=2"]
        text = refused("eval -q -c", run_folder, *other, code=6)
        assert f"trained with data.task {task}, the recipe has single-label" in text
