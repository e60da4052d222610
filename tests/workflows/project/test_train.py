"""`everest train`: from videos of one's own to a summary, in one folder."""

import json
import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import torch
from small_projects import BY_PERSON, FEW, STEPS, moving
from small_runs import called, json_of, refused, sets

import everest
from everest.config.recipe import load_recipe
from everest.lists.reading import read_samples
from everest.lists.sources import LIST_FILES
from everest.metrics.names import METRICS
from everest.system import compute
from everest.system.weights_header import read_header
from everest.video.writer import write_video


def test_one_folder_has_the_result_the_page_and_the_model(class_folders: Path, trained: Path):
    document = json_of("train", class_folders, "-o", trained, *BY_PERSON)
    assert document["report"] == str(trained / "report" / "index.html")
    assert f"<p>{document['judgment']}</p>" in unescape(Path(document["report"]).read_text())
    assert document["checkpoint"] == str(trained / "model" / "model.safetensors")
    assert everest.load_model(document["checkpoint"]).classes == ("down", "right")
    names = "linear-images images-motion random-features network mean"
    candidates = {each["name"]: each for each in document["candidates"]}
    assert list(candidates) == names.split()
    assert document["chosen"] in candidates
    assert candidates["linear-images"]["test"] == document["linear_pixels"]
    assert document["chance"] == document["majority"] == 50
    assert candidates[document["chosen"]]["test"] == document["value"]


def test_a_finished_project_shows_its_summary_again(class_folders: Path, trained: Path):
    shown = called("train", class_folders, "-o", trained, *BY_PERSON)
    assert "already finished; use --overwrite to train again" in shown.stderr
    assert shown.stdout.startswith("accuracy ")
    assert re.search(rf"(?sm)took \d+ s \(planned \d+ s\)\n.*VIDEO --checkpoint {trained}$", shown.stdout)


def test_each_person_is_in_one_list(class_folders: Path, trained: Path):
    data = load_recipe(trained / "recipe.yaml").data
    listed = [read_samples(Path(getattr(data, name)), root=class_folders).samples for name in LIST_FILES]
    groups = [{sample.group for sample in samples} for samples in listed]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups)) == 4
    assert sum(map(len, listed)) == 16


def test_an_evaluation_of_class_folders_has_the_groups_of_training(class_folders: Path, trained: Path):
    command = ["eval", "--checkpoint", trained, "--data", class_folders, *sets("data.test=.")]
    assert json_of(*command)["groups"] == 16
    assert json_of(*command, "--group", r"(p\d)_")["groups"] == 4


def test_only_the_folder_of_the_new_lists_is_renamed(class_folders: Path, trained: Path):
    data = load_recipe(trained / "recipe.yaml").data
    assert (data.root, data.train) == (str(class_folders), str(trained / "lists" / "train.csv"))
    assert json.loads((trained / "project.json").read_text())["request"]["videos"] == str(class_folders)


def test_the_model_is_the_one_that_the_commands_train(trained: Path, tmp_path: Path):
    recipe = trained / "recipe.yaml"
    called("finetune", "--recipe", recipe, "--init", "none", "-o", tmp_path / "run", *FEW)
    for name in ("best.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / "finetune" / name).read_bytes()


def test_groups_of_one_class_and_other_frame_sizes_are_named_from_the_plan_to_the_card(tmp_path: Path):
    videos, output = tmp_path / "videos", tmp_path / "project"
    for number in range(12):
        name, size = (("jam", (48, 32)), ("ok", (32, 32)))[number % 2]
        (videos / name).mkdir(parents=True, exist_ok=True)
        clip = torch.randint(0, 256, (4, *size, 3), generator=torch.Generator().manual_seed(number))
        path = videos / name / f"shift{number % 6}_{number}.mp4"
        write_video(path, clip.to(torch.uint8), fps=10)
    shown = called(
        *("train", videos, "-o", output, "--group", r"(shift\d)_", "--folds", 3, "--model", "linear"),
        *sets("data.frames=1", "train.workers=0", "data.size=32", "model.tubelet=[1,8,8]"),
        *sets("model.input=frames", "pretrain.camera_motion=0"),
    )
    plan, summary = shown.stderr, shown.stdout
    assert "2 classes: jam 6 (3 groups), ok 6 (3 groups)\n" in plan
    assert re.search(r"fold 1 of 3\n(?s:.*)fold 2 of 3, about \d+ (?:s|min) left at the speed so far\n", plan)
    assert "frame size and rate alone 100.0 %, a linear model on small images" in summary
    assert load_recipe(output / "recipe.yaml").data.frames == 1
    assert "# by --set: train.workers: 0\n" in (output / "recipe.yaml").read_text()
    result = json.loads((output / "result.json").read_text())
    groups, sizes = result["warnings"]
    assert groups.startswith("every group has clips of one class only, so a model may learn the light")
    assert sizes.startswith("classes differ in frame size: mostly 32x48 in 'jam', 32x32 in 'ok'; a model may")
    assert sizes.endswith(
        "; record all classes alike, or shrink all to the smallest by everest prepare encode"
    )
    called("export", output, "--to", "onnx", "-o", tmp_path / "line.onnx")
    card, page = tmp_path / "line.onnx.CARD.md", output / "report" / "index.html"
    for text in (plan, summary, card.read_text()):
        assert all(f"warning: {warning}" in text for warning in result["warnings"])
    text = unescape(page.read_text())
    assert text.count('<div class="warning">') == 2  # a box for each, with what to do
    assert "<b>What to do:</b> film several classes in each group.</p>" in text
    names = {each["name"] for each in result["candidates"]}
    assert names == {"linear-images", "random-features", "size-rate", "mean"}
    assert not any(word in text for word in ("motion", "change") for text in (summary, *names))


def test_adaptation_keeps_the_license_of_image_weights_and_a_latency_the_views_of_an_export(
    class_folders: Path, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compute, "BUSY", 0)
    project, name = tmp_path / "project", f"timm:vit_tiny_patch16_224={image_file}"
    for number in range(4):
        moving(tmp_path / "unlabeled" / f"{number}.mp4", 16 * [(1, 1)], 20 + number)
    few = [*STEPS, *sets("pretrain.steps=2", "pretrain.batch_size=4", "data.size=32", "data.frames=2")]
    options = ["--init", name, "--model", "network", "--latency", 0.01, *few]
    shown = called("train", class_folders, "--unlabeled", tmp_path / "unlabeled", "-o", project, *options)
    limit = r"more than 0.0075 of 0.01 ms; histograms of motion may take the rest"
    too_slow = rf"warning: vit-tiny, .*, one view: [\d.e+]+ ms .* \({limit}\); omit --init, or name smaller"
    assert re.search(too_slow, shown.stderr)
    assert re.search(r"other programs use the CPU, so a clip takes [\d.e+]+ ms now; plan on", shown.stderr)
    too_slow = "(above the limit of 0.01: export int8, or train with a lower --latency), and "
    assert f"ms in the network by PyTorch {too_slow}" in shown.stdout
    document = json.loads((project / "result.json").read_text())
    time = document["clip_time"]
    assert min(time["network_ms"], time["reading_ms"]) > time["limit_ms"] == 0.01
    assert "a clip on one CPU thread: " in Path(document["report"]).read_text()
    assert {"frozen-features", "adapted-features"} < {each["name"] for each in document["candidates"]}
    assert "pretrain: 2 steps of 4 clips, about" in shown.stderr
    recipe, pretrained = (load_recipe(folder / "recipe.yaml") for folder in (project, project / "pretrain"))
    assert (recipe.eval.clips, recipe.eval.crops) == (1, 1)  # as an exported file
    assert (recipe.model.attention, pretrained.model.attention) == ("slice", "joint")
    for folder in (project / "model", project / "pretrain"):  # the network is fine-tuned from the weights
        start = read_header(folder / "model.safetensors").origin
        assert (start["file"], start["licence"]) == (name, "apache-2.0")


def relabel(class_folders: Path, listed: Path, *, down: str, right: str) -> None:
    """Write a list of the class folders with other labels."""
    label_of = {"down": down, "right": right}
    rows = [f"{path},{label_of[path.parent.name]}" for path in sorted(class_folders.rglob("*.mp4"))]
    listed.write_text("\n".join(["path,label", *rows]) + "\n")


def test_numbers_are_measured_by_their_error(class_folders: Path, tmp_path: Path):
    relabel(class_folders, videos := tmp_path / "all.csv", down="1", right="2")
    options = [videos, "--task", "regression", "-o", tmp_path / "project", *FEW]
    document = json_of("train", *options)
    errors = {each["name"]: each["test"] for each in document["candidates"]}
    assert document["value"] == pytest.approx(errors[document["chosen"]], abs=1e-6)
    assert document["linear_pixels"] == errors["linear-images"]
    assert document["linear_pixels"] < 0.5 == document["chance"]  # of the mean of 1 and 2
    assert (document["metric"], document["majority"]) == ("mae", None)
    assert METRICS["mae"].title in called("train", *options).stdout
    folds = ["-o", tmp_path / "folds", "--folds", 3]
    assert "needs classes, but the labels are numbers" in refused("train", *options, *folds, code=2)


def test_several_classes_of_a_video_are_measured_by_their_average_precision(class_folders, tmp_path):
    relabel(class_folders, videos := tmp_path / "all.csv", down="down|both", right="right|both")
    options = [videos, "--task", "multi-label", "-o", tmp_path / "project", "--folds", 3, *FEW]
    document = json_of("train", *options)
    assert (document["metric"], document["majority"]) == ("map", None)
    assert sum(fold["videos"] for fold in document["folds"]) == document["videos"] == 16
    assert document["interval"][0] <= document["value"] <= document["interval"][1]
    behaviors = {row["name"]: row for row in document["behaviors"]}
    prevalence = {name: row["prevalence"] for name, row in behaviors.items()}
    assert prevalence == {"both": 100, "down": 50, "right": 50}
    mean = sum(row["ap"] for row in behaviors.values()) / len(behaviors)
    assert document["value"] == pytest.approx(mean, abs=1e-3)
    for row in behaviors.values():
        assert row["interval"] is None or row["interval"][0] <= row["ap"] <= row["interval"][1]
    assert re.search(r"│ down +│ [\d.]+ % .*│ 8 +│", called("train", *options).stdout)


def test_an_exported_file_is_evaluated_on_one_view_by_the_printed_command(trained: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    result, file = json.loads((trained / "result.json").read_text()), tmp_path / "line.onnx"
    shown = called("export", trained, "--to", "onnx", "--json", "-o", file)
    document = json.loads(shown.stdout)
    assert f"next: {document['next']}" in shown.stderr
    speed = f"network, a clip on one CPU thread: {document['network_ms']:.3g} ms with ONNX Runtime"
    assert f"{speed} (without reading and decoding)" in shown.stderr
    assert f"accuracy {result['value']:.1f} %" in Path(f"{file}.CARD.md").read_text()
    evaluated = json_of(*shlex.split(document["next"])[1:])
    assert (evaluated["videos"], evaluated["views"]) == (result["videos"], {"clips": 1, "crops": 1})
