"""A project with folds: each group is tested once, and the selected model learns from all videos."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from small_projects import FEW
from small_runs import called, json_of

from everest.config.recipe import load_recipe
from everest.lists.reading import read_samples


@pytest.fixture(scope="session")
def command(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Train in four folds on recordings that are annotated in two files, with one bout in both."""
    folder = tmp_path_factory.mktemp("folds")
    header, *bouts = recordings.with_name("bouts.csv").read_text().splitlines(keepends=True)
    annotations = []
    for number in range(2):
        (folder / f"{number}.csv").write_text("".join([header, bouts[0], *bouts[1 + number :: 2]]))
        annotations += ["--annotations", folder / f"{number}.csv"]
    options = ["-o", folder / "project", "--folds", 4, "--group", r"(r\d)", *FEW]
    return "train", recordings, *annotations, *options


@pytest.fixture(scope="session")
def result(command: tuple[object, ...]) -> dict[str, Any]:
    return json_of(*command)


@pytest.fixture(scope="session")
def output(result: dict[str, Any]) -> Path:
    return Path(result["checkpoint"]).parents[1]


def test_folds_test_every_group_once(result):
    assert len(result["folds"]) == result["groups"] == 4
    assert result["videos"] == sum(fold["videos"] for fold in result["folds"]) == 44
    mean = sum(fold["value"] * fold["videos"] for fold in result["folds"]) / 44
    assert result["value"] == pytest.approx(mean, abs=1e-3)
    for value, key in ((mean, "interval"), (mean - result["linear_pixels"], "difference")):
        assert result[key][0] <= value <= result[key][1]
    # Of recordings of equal length.
    frames = sum(fold["timelines"]["frame_accuracy"] for fold in result["folds"]) / 4
    assert result["timelines"]["frame_accuracy"] == pytest.approx(frames, abs=1e-3)


def test_the_selected_model_learns_from_all_videos(result, output):
    data = load_recipe(output / "recipe.yaml").data
    assert len(read_samples(Path(str(data.train)), root=Path(data.root)).samples) == 44
    assert (data.val, data.test) == (None, None)
    refused = called("eval", "--checkpoint", output, code=2).stderr
    assert re.search(r"was tested in folds, see \S+index.html; name new labeled videos: --data DIR", refused)
    assert result["checkpoint"] == str(output / "model" / "model.safetensors")


def test_the_pages_of_the_folds_and_of_all_lead_to_each_other(result, output):
    page, of_fold = (Path(each["report"]) for each in (result, result["folds"][1]))
    text, text_of_fold = page.read_text(), of_fold.read_text()
    assert page == output / "report" / "index.html"
    assert (page.parent / re.findall('href="([^"]*)">fold 2<', text)[0]).samefile(of_fold)
    assert (of_fold.parent / re.findall('href="([^"]*)">The result', text_of_fold)[0]).samefile(page)
    title = "<h1>Test of fold 2 of 4</h1>"
    assert title in text_of_fold
    assert f"<p>accuracy {result['folds'][1]['value']:.1f} %" in text_of_fold


def test_the_page_shows_all_folds_together(result):
    page = Path(result["report"]).read_text()
    assert f"<p>{result['judgment']}</p>" in unescape(page)
    assert "<h1>Test of project, all folds together</h1>" in page
    assert "Small: 95 % CI." in page
    num_wrong = round(44 * (1 - result["value"] / 100))
    assert page.count('<figure class="mistake">') == min(num_wrong, 12) > 0
    assert re.search(r'class="path">/.*r\d\.mp4', page)
    assert "windows</th><td>44, from 4 groups" in page
    assert not re.search(r">[^<]*videos", page.replace("label videos of more groups", ""))


def test_the_card_of_an_exported_file_has_the_accuracy_of_all_folds(result, output, tmp_path):
    exported = json_of("export", output, "--to", "onnx", "-o", tmp_path / "line.onnx")
    assert exported["clip"]["seconds"] > 0
    assert exported["next"].endswith(r"--data NEW_CLIPS --set data.test=. --group '(r\d)'")
    card = (tmp_path / "line.onnx.CARD.md").read_text()
    assert f"accuracy {result['value']:.1f} %" in card
    assert "in 4 folds; this model has learned from all videos" in card


def test_finished_folds_stay_when_the_call_is_repeated(command, result, output):
    page = Path(result["report"])
    text = page.read_text()
    (output / "result.json").unlink()
    assert (json_of(*command)["folds"], page.read_text()) == (result["folds"], text)
