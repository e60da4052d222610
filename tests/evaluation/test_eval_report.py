import csv
import re
from pathlib import Path

import numpy as np
import pytest
from made_predictions import predictions_of
from PIL import Image
from small_runs import json_of, refused, run, small_recipe

import everest
from everest.config.heads import Head
from everest.evaluation.multi_view import evaluate_views
from everest.evaluation.plots import draw_confusion, shorten_names
from everest.evaluation.report import render_page
from everest.evaluation.sections import (
    class_results,
    count_confusions,
    most_frequent_confusions,
    surest_mistakes,
)
from everest.lists.classes import Classes
from everest.metrics.metrics import measure, per_class
from everest.metrics.predicted import HeadPredictions
from everest.models.classifier import VideoClassifier
from everest.profiling.profile import stage_cost
from everest.system.accelerator import make_accelerator
from everest.system.events import silent


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


def test_classes_come_with_the_worst_first_and_the_empty_last():
    rows = class_results(count_confusions(HEAD), NAMES)
    assert [(r.number, r.name, r.support, r.correct, r.confused_with, r.confused) for r in rows] == [
        (1, "sit", 1, 0, "run", 1),
        (0, "run", 3, 1, "sit", 1),
        (2, "jump", 0, 0, None, 0),
    ]
    assert [row.recall for row in rows] == [0, pytest.approx(100 / 3), None]


def test_the_surest_mistakes_come_first():
    found = surest_mistakes(HEAD, list("abcd"), NAMES, most=2)
    assert [(m.video, m.label, m.predicted) for m in found] == [("d", "sit", "run"), ("c", "run", "jump")]
    assert (found[0].label_probability, found[0].probability) == pytest.approx((0.1, 0.9))


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


def test_each_head_of_many_classes_has_a_switch_to_full_size():
    heads = tuple(Head(name=name, outputs=31) for name in ("verb", "noun"))
    outputs = np.random.default_rng(0).random((2, 1, 62), dtype=np.float32)
    predictions = predictions_of([(0, 1), (0, 2)], outputs, *heads)
    names = [f"class {i}" for i in range(31)]
    figures = {"plot": "data:,", "file": "confusion.png", "reliability": "data:,"}
    page = {"template": "page_single_label.html", "confusions": [], "mistakes": [], **figures}
    sections = [
        {
            **{"name": name, "classes": class_results(count_confusions(head), names)},
            **{"scores": per_class(head, names), **page},
        }
        for name, head in predictions.by_head().items()
    ]
    shape = {"videos": 2, "groups": 2, "skipped": 0, "views": {"clips": 1, "crops": 1}, "seconds": 1.0}
    shape |= {"keep": 1.0, "tokens": 8, "gmacs": 1.0}
    result = {"checkpoint": "run", "recipe": "tiny", **shape, **measure(predictions, intervals=False)}
    text = render_page(result, sections, predictions, sweep=None)
    switches = re.findall(r'<input type="checkbox" id="(\w+)"><label for="(\w+)">', text)
    assert switches == [("full1", "full1"), ("full2", "full2")]


def test_a_sweep_equals_evaluations_with_these_keep_ratios(classifier_run: Path):
    swept = json_of("eval", "-c", classifier_run, "-q", "--keep", "0.25,0.6,1")
    assert [(row["keep"], row["tokens"]) for row in swept["sweep"]] == [(0.25, 8), (0.6, 19), (1.0, 32)]
    assert [row["gmacs"] for row in swept["sweep"]] == sorted(row["gmacs"] for row in swept["sweep"])
    recipe = everest.load_recipe(classifier_run / "recipe.yaml")
    cost = stage_cost(recipe, "finetune", value_bytes=4).gmacs
    assert swept["sweep"][1]["gmacs"] == pytest.approx(cost, abs=1e-4)  # 0.6 as trained
    for row in swept["sweep"]:
        share = ["--set", f"finetune.selection.keep_ratio={row['keep']}"]
        alone = json_of("eval", "-c", classifier_run, "-q", *share)
        for name in ("top1", "top5", "mean_class_accuracy", "clip_top1"):
            assert row[name] == alone[name]


def test_the_page_and_the_predictions_file_agree(classifier_run: Path, tmp_path: Path):
    page, table = tmp_path / "page", tmp_path / "predictions.csv"
    options = ["--report", page, "--predictions", table]
    document = json_of("eval -q", "-c", classifier_run, *options)
    assert document["report"] == str(page / "index.html")
    assert sorted(path.name for path in page.iterdir()) == ["confusion.png", "index.html", "reliability.png"]
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


def test_invalid_keep_ratios_are_refused_before_the_evaluation(classifier_run: Path):
    ratios = dict.fromkeys(("0", "half", "1.5"), "give keep ratios") | {"0.5,0.5": "twice"}
    for keep, message in {**ratios, "0.01": "none is left to encode"}.items():
        assert message in refused("eval", "-c", classifier_run, "--keep", keep, code=2)


def test_every_video_is_decoded_once_for_all_shares(classifier_run: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = everest.load_recipe(classifier_run / "recipe.yaml")
    model = everest.load_model(classifier_run)
    assert isinstance(model, VideoClassifier)
    clips = everest.data.stages.evaluation_clips(recipe, Classes(heads=(Head(outputs=2),)))
    read, requested = clips.read, []
    monkeypatch.setattr(clips, "read", lambda key, out: requested.append(key) or read(key, out))
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=True)
    keeps = [None, 0.25, 0.5, 1.0]
    found = evaluate_views(model, clips, accelerator, settings=recipe.train, report=silent, keeps=keeps)
    assert requested == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert len(found) == 4
    assert (found[1].outputs != found[3].outputs).any()
