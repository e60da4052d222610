import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import json_of, refused, run, sets, small_recipe

from everest.evaluation.page import draw_confusion, shorten_names
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
        draw_confusion(tmp_path / "m.png", np.eye(count, dtype=np.int64), names, unit="video")
        with Image.open(tmp_path / "m.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255  # all around is white
        assert min(pixels.shape) > 10 * count  # pixels for each name
        assert pixels.shape[1] > 300 + 9 * count


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
    settings = (f"data.test={tmp_path}/list.csv", "train.workers=1", "train.data_timeout=3")
    error = refused("eval -q", "-c", classifier_run, *sets(*settings), code=4)
    assert "no clip within 3 s" in error


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
