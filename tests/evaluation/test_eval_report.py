import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import json_of, refused, run, small_recipe

from everest.config.heads import Head
from everest.evaluation.report import (
    count_confusions,
    draw_confusion,
    draw_scatter,
    most_frequent_confusions,
    shorten_names,
    worst_videos,
)
from everest.metrics.predicted import HeadPredictions


def head(labels: list[int], probabilities: list[list[float]]) -> HeadPredictions:
    """One view a video."""
    return HeadPredictions(
        head=Head(outputs=len(probabilities[0])),
        labels=np.array(labels),
        outputs=np.array(probabilities, dtype=np.float32)[:, None],
    )


# Three videos of class 0, one of class 1, none of class 2.
HEAD = head([0, 0, 0, 1], [[0.6, 0.4, 0], [0.2, 0.7, 0.1], [0.0, 0.25, 0.75], [0.9, 0.1, 0.0]])
NAMES = ["run", "sit", "jump"]


def test_confusions_are_counted_by_true_and_predicted_class():
    assert count_confusions(HEAD).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_the_worst_videos_come_first():
    found = worst_videos(HEAD, NAMES, most=2)
    assert [(each.number, each.label) for each in found] == [
        (2, "run (0.0\N{NO-BREAK SPACE}%)"),
        (3, "sit (10.0\N{NO-BREAK SPACE}%)"),
    ]
    assert found[1].predicted == "run (90.0\N{NO-BREAK SPACE}%)"


def test_confusions_are_listed_with_the_most_frequent_first():
    counts = np.random.default_rng(0).integers(0, 9, (400, 400)) * (np.arange(400) % 3 > 0)[:, None]
    names = [f"class {i}" for i in range(400)]
    pairs = [
        (-counts[i, j], counts[i].sum(), names[i], names[j])
        for i in range(400)
        for j in range(400)
        if i != j and counts[i, j]
    ]
    found = most_frequent_confusions(counts, names, most=20)
    assert len(found) == 20
    keys = [(-pair.videos, pair.support) for pair in found]
    assert keys == [pair[:2] for pair in sorted(pairs)[:20]]
    assert {(-p.videos, p.support, p.label, p.predicted) for p in found} <= set(pairs)
    assert most_frequent_confusions(np.eye(2, dtype=np.int64), names[:2], most=20) == []


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
        draw_confusion(tmp_path / "m.png", np.eye(count, dtype=np.int64), names)
        with Image.open(tmp_path / "m.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255  # all around is white
        assert min(pixels.shape) > 10 * count  # pixels for each name
        assert pixels.shape[1] > 300 + 9 * count


@pytest.mark.parametrize("videos", [1, 3, 500])
def test_a_scatter_plot_has_equal_axes_for_any_number_of_videos(tmp_path: Path, videos: int):
    rng = np.random.default_rng(0)
    truth = rng.gamma(3, 20, size=videos)
    draw_scatter(tmp_path / "s.png", truth, truth + 9 * rng.normal(size=videos))
    with Image.open(tmp_path / "s.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert 650 < min(pixels.shape) <= max(pixels.shape) < 800
    assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255


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
    table = text.split('id="metrics"')[1].split("</table>")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert all(f"{value:.1f}" in table for value in shown)
    assert f"{document['top1']:.1f} %</td>" in table
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # no other file, no network


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
