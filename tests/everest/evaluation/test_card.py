import json
import shutil
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard
from small_runs import json_of, refused, run
from tiny_models import save_model

from everest.checkpoints.load import open_model
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.evaluation.card import model_card
from everest.models.spec import classifier_spec
from everest.system.weights import read_weights


def test_a_card_has_data_metrics_with_intervals_license_and_cost(classifier_run: Path, tmp_path: Path):
    evaluation = json_of("eval -q --checkpoint", classifier_run)
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    options = ["--evaluation", tmp_path / "eval.json"]
    run("export --to hf", classifier_run, "-o", tmp_path / "hf", *options)
    text = (tmp_path / "hf" / "README.md").read_text()
    assert 'VideoMAEForVideoClassification.from_pretrained("FOLDER")' in text
    assert "- transformers encodes all 32 tokens" in text
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "video-classification"
    low, high = evaluation["intervals"]["top1"]
    (row,) = [line for line in text.splitlines() if line.startswith("| top-1 |")]
    assert f"{low:.1f} to {high:.1f}" in row
    facts = ("trained on `train.csv`", "evaluated on `train", "GMACs for a clip", "2 frames of the video ")
    for fact in facts:
        assert fact in text
    heads = (Head(name="a|b", outputs=2), Head(name="c", outputs=2))
    spec = classifier_spec(load_recipe(classifier_run / "recipe.yaml", imports=False), heads)
    opened = open_model(save_model(tmp_path / "heads.safetensors", spec))
    text = model_card(
        opened, evaluation={**evaluation, "heads": dict.fromkeys(("a|b", "c"), evaluation)}, file="x"
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| a\\|b top-1 | " in "".join(rows)
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_a_card_names_what_its_publisher_has_to_state(classifier_run: Path, tmp_path: Path):
    weights = read_weights(classifier_run / "model.safetensors")
    terms = {"licence": "cc-by-nc-4.0", "origin": None}
    origin = {"file": "hub/videomae.safetensors", "kind": "pretrain", **terms}
    replace(weights, origin=origin).save(tmp_path / "alone.safetensors")
    run("export --to hf", tmp_path / "alone.safetensors", "-o", tmp_path / "hf")
    text = (tmp_path / "hf" / "README.md").read_text()
    assert "add their license" in text
    assert "started from `videomae.safetensors`, license: cc-by-nc-4.0" in text
    assert "None was given" in text
    command = ("export --to onnx", classifier_run, "-o", tmp_path / "m.onnx")
    keys = {"videos": 4, "groups": 4, "skipped": 0, "checkpoint": "c", "recipe": "r"}
    for other in ({}, [], {**keys, "views": 6}, {**keys, "views": {"clips": 2}}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        message = refused(*command, "--evaluation", tmp_path / "other.json", code=2)
        assert "write it with everest eval --json" in message
    assert not list(tmp_path.glob("m.onnx*"))


def test_a_card_next_to_a_graph_has_the_tokens_that_it_encodes(classifier_run: Path, tmp_path: Path):
    file, card = tmp_path / "m.onnx", tmp_path / "m.onnx.CARD.md"
    recipe = shutil.copytree(classifier_run, tmp_path / "run") / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("train: train.csv", "train: /home/me/train.csv"))
    command = ("export --to onnx --keep 0.25", recipe.parent, "-o", file)
    document = json_of(*command)
    assert document["written"] == [str(file), str(card), str(tmp_path / "classify.py")]
    text = card.read_text()
    assert "- encodes 8 of 32 tokens of a clip" in text
    assert "trained on `train.csv`" in text
    assert "evaluated on" not in text
    assert ModelCard(text).data.library_name == "everest"
    assert "`classify.py` beside it reads a video or a camera" in text
    assert 'model = onnxruntime.InferenceSession("m.onnx")' in text
    file.unlink()
    assert "m.onnx.CARD.md: exists" in refused(*command, code=2)


def test_a_card_takes_no_evaluation_of_another_model(classifier_run: Path, mixed_run: Path, tmp_path: Path):
    document = json_of("eval -q --checkpoint", mixed_run)
    (tmp_path / "eval.json").write_text(json.dumps(document))
    options = ["-o", tmp_path / "m.onnx", "--evaluation", tmp_path / "eval.json"]
    message = refused("export --to onnx", classifier_run, *options, code=2)
    assert "a model with other heads or classes" in message
