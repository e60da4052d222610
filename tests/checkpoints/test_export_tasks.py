import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import onnx_session, refused, run
from task_runs import NAMES, task_run
from torch import Tensor

import everest
from everest.checkpoints.graph import exportable
from everest.checkpoints.graph_files import compare
from everest.checkpoints.load import open_model
from everest.errors import EnvironmentProblem
from everest.models.classifier import VideoClassifier


def opened(checkpoint: Path, clip_files: Path) -> tuple[VideoClassifier, Tensor]:
    """The model, and two normalized clips."""
    model = everest.load_model(checkpoint)
    assert isinstance(model, VideoClassifier)
    frames = torch.stack([everest.read_clip(clip_files / f"clip{i}.mp4", like=model) for i in range(2)])
    return model, everest.normalize(frames)


@pytest.mark.slow
def test_a_graph_of_numbers_computes_them_in_their_unit(scores_run, clip_files, tmp_path):
    model, clips = opened(scores_run, clip_files)
    run("export", scores_run, "--to", "onnx", "--out", tmp_path / "m.onnx")
    session = onnx_session(tmp_path / "m.onnx")
    (values,) = session.run(["values"], {"frames": clips.numpy()})
    with torch.no_grad():
        expected = model.outputs(model(clips)).numpy()  # (2, 1)
    (head,) = model.heads
    assert abs(values - expected).max() < 1e-4 * head.std
    assert json.loads(session.get_modelmeta().custom_metadata_map["heads"]) == [
        {"name": "", "task": "regression", "outputs": 1, "mean": head.mean, "std": head.std}
    ]


def test_a_graph_of_every_task_has_logits_of_classes_and_numbers_in_their_unit(
    mixed_run: Path, scores_run: Path, clip_files: Path
):
    model, clips = opened(scores_run, clip_files)
    numbers = exportable(open_model(scores_run / "best.safetensors", kind="transformer"), keep=None)
    assert numbers.outputs == ("values", "kept")
    with torch.no_grad():
        assert torch.equal(numbers(clips)[0], model.outputs(model(clips)))
    model, clips = opened(mixed_run, clip_files)
    exported = exportable(open_model(mixed_run / "best.safetensors", kind="transformer"), keep=None)
    assert exported.outputs == ("logits", "kept")
    with torch.no_grad():
        found, logits = exported(clips)[0], model(clips)
        assert torch.equal(found[:, :5], logits[:, :5])
        assert torch.equal(found[:, 5:], model.outputs(logits)[:, 5:])
    heads = json.loads(exported.metadata["heads"])
    tasks = {"verb": "single-label", "tags": "multi-label", "score": "regression"}
    assert [(head["name"], head["task"]) for head in heads] == list(tasks.items())
    assert model.heads[1].chosen_thresholds
    assert heads[1]["thresholds"] == list(model.heads[1].thresholds)

    # A difference counts in units of the numbers' std.
    def moved(x: Tensor, by: float) -> list[Tensor]:
        values, kept = exported(x)
        return [values + exported.unit * by, kept]

    assert compare(exported, partial(moved, by=5e-5), what="it").largest == pytest.approx(5e-5, rel=0.2)
    with pytest.raises(EnvironmentProblem, match="computes something else"):
        compare(exported, partial(moved, by=5e-4), what="it")


def test_transformers_gets_several_classes_as_its_problem_type_and_gives_them_back(tags_run, tmp_path):
    run("export", tags_run, "--to", "hf", "--out", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    run("convert", tmp_path / "hf", "--out", tmp_path / "back.safetensors")
    model, back = everest.load_model(tags_run), everest.load_model(tmp_path / "back.safetensors")
    assert back.classes == model.classes == NAMES
    assert (back.heads[0].task, back.heads[0].outputs) == ("multi-label", 3)


def test_a_number_of_transformers_is_a_number_here(tags_run: Path, tmp_path: Path):
    folder = tmp_path / "hf"
    run("export", tags_run, "--to", "hf", "--out", folder)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "regression"}
    (folder / "config.json").write_text(json.dumps(config))
    given = ("convert", folder, "--out", tmp_path / "number.safetensors")
    assert "regression has one output" in refused(*given, code=6)
    del config["problem_type"], config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    ones = {f"classifier.{name}": tensors[f"classifier.{name}"][:1] for name in ("weight", "bias")}
    save_file({**tensors, **ones}, folder / "model.safetensors", metadata={"format": "pt"})
    run(*given)
    (head,) = everest.load_model(tmp_path / "number.safetensors").heads
    assert (head.task, head.mean, head.std) == ("regression", 0, 1)


def test_transformers_gets_no_numbers_and_no_named_heads(scores_run, mixed_run, clip_files, tmp_path):
    named_run = task_run(tmp_path, clip_files, "named")
    for checkpoint, reason in (
        (scores_run, "data.task=regression"),
        (mixed_run, "data.heads"),
        (named_run, "data.heads"),
    ):
        assert reason in refused("export", checkpoint, "--to", "hf", "--out", tmp_path / "hf", code=6)
        assert not (tmp_path / "hf").exists()
