import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import equal, json_of, onnx_session, refused, run
from task_runs import NAMES
from tiny_models import randomized, save_model
from torch import Tensor

import everest
from everest.checkpoints import graph_files
from everest.checkpoints.graph import make_graph
from everest.checkpoints.graph_files import RunFile, compare
from everest.checkpoints.load import open_model
from everest.config.heads import Head, named_heads
from everest.config.settings import ModelSettings
from everest.errors import CheckpointError, EnvironmentProblem
from everest.inference.opened_model import encode_clips
from everest.methods.strategies import AllTokens, RedundancyRobust, TubeDropout
from everest.methods.targets import PixelTargets
from everest.models.classifier import ClassifierSpec, VideoClassifier
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderSpec
from everest.models.vit import Norms
from everest.system.weights import read_weights

CLASSES = ("run", "sit", "jump")
SMALL = ModelSettings(
    backbone="vit-tiny", width=48, depth=2, heads=3, decoder_width=24, decoder_heads=3, decoder_depth=2
)
CLIPS = {"frames": 8, "size": (64, 64), "model": SMALL}
PARTLY_KEPT = RedundancyRobust(keep_ratio=0.6, visible_ratio=None)
CLASSIFIER = ClassifierSpec(**CLIPS, selection=PARTLY_KEPT, heads=(Head(outputs=3),))
OF_DIFFERENCES = replace(CLASSIFIER, model=replace(SMALL, input="differences"))
ATTENTIVE = replace(CLASSIFIER, model=replace(SMALL, pooling="class-attention"))
LIKE_ST_MAE = replace(
    CLASSIFIER, model=replace(SMALL, positions="learned-separable", class_token=True), selection=AllTokens()
)
PARTS = {"rotary": "pe:3", "norm_before": True, "mlp": "normed-swiglu", "registers": 2}
LIKE_IMAGE_MODELS = replace(LIKE_ST_MAE, model=replace(LIKE_ST_MAE.model, **PARTS))


def by_distance(distance: str) -> ClassifierSpec:
    return replace(CLASSIFIER, selection=replace(PARTLY_KEPT, distance=distance))


AUTOENCODER = AutoencoderSpec(**CLIPS, selection=RedundancyRobust(), target=PixelTargets())


def saved(path: Path, spec: ModelSpec, *, classes: tuple[str, ...] | None = CLASSES) -> Path:
    """Save a checkpoint whose weights differ from their initial values as much as after training."""
    torch.manual_seed(0)
    model = randomized(spec.build(), 0.05)
    if isinstance(model, VideoClassifier):
        with torch.no_grad():
            model.head.weight.mul_(20)
    return save_model(path, spec, model, classes=classes if spec.kind == "classifier" else None)


@pytest.fixture(scope="module")
def clips(shared: Path) -> Tensor:
    """(3, 3, 8, 64, 64): three real clips."""
    videos = sorted((shared / "videos" / "actions" / "tennis").rglob("*.mp4"))[:150:50]
    return torch.stack([everest.normalize(everest.read_clip(v, frames=8, stride=2, size=64)) for v in videos])


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_transformers_computes_the_same_logits_from_all_tokens_of_real_clips(clips, tmp_path, pooling):
    transformers = pytest.importorskip("transformers")
    spec = replace(CLASSIFIER, model=replace(SMALL, pooling=pooling))
    checkpoint = saved(tmp_path / "model.safetensors", spec)
    document = json_of("export --to hf", checkpoint, "--out", tmp_path / "hf")
    reference, loading = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        expected = everest.load_model(checkpoint)(clips, keep=1)
        assert expected.std() > 0.1
        logits = reference.eval()(clips.transpose(1, 2)).logits  # (B, T, 3, H, W) in
        assert (logits - expected).abs().max() < 1e-3
        assert document["difference"] < 1e-3
        if pooling == "mean":
            assert "set model.fc_norm.eps = 1e-06" in document["notes"][1]
            reference.fc_norm.eps = 1e-6
        logits = reference(clips.transpose(1, 2)).logits
        assert (logits - expected).abs().max() < 2e-5
    assert list(reference.config.id2label.values()) == list(CLASSES)


@pytest.mark.parametrize("after_encoder", [True, False])
def test_transformers_predicts_the_same_of_masked_clips(clips: Tensor, tmp_path: Path, after_encoder: bool):
    transformers = pytest.importorskip("transformers")
    spec = replace(AUTOENCODER, norms=Norms(after_encoder=after_encoder))
    checkpoint = saved(tmp_path / "model.safetensors", spec)
    notes = json_of("export", checkpoint, "--to", "hf", "--out", tmp_path / "hf")["notes"]
    assert "VideoMAEModel encodes all 64 tokens of a clip" in notes
    assert notes[-1].startswith("the decoder's last norm, not the encoder's, has another eps")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "everest extract" not in card
    lines = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(tmp_path / "hf"))
    given = {"clips": clips.transpose(1, 2)}
    exec(lines, given)
    reference = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    reference.decoder.norm.eps = 1e-6  # as a note of the export states
    model, ids = everest.load_model(checkpoint), torch.arange(64).expand(3, -1)
    assert equal(open_model(tmp_path / "hf").weights.tensors, model.state_dict())
    chosen = everest.TokenSelection(
        visible=ids[:, ::4], predicted=torch.cat([ids[:, k::4] for k in (1, 2, 3)], 1).sort()[0]
    )
    masked = torch.ones(3, 64, dtype=torch.bool).scatter(1, chosen.visible, False)
    with torch.no_grad():
        out = model(clips, selection=chosen)
        reference_out = reference(clips.transpose(1, 2), bool_masked_pos=masked)
        torch.testing.assert_close(given["tokens"], model.encoder(clips, ids), atol=1e-4, rtol=1e-4)
    assert (reference_out.logits - out.prediction).abs().max() < 2e-5
    assert float(reference_out.loss) == pytest.approx(float(out.loss), rel=1e-5)


def test_transformers_preprocesses_frames_in_the_same_way(shared: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    checkpoint = saved(tmp_path / "model.safetensors", CLASSIFIER, classes=None)
    run("export", checkpoint, "--to", "hf", "--out", tmp_path / "hf")
    processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path / "hf")
    video = next((shared / "videos" / "actions" / "tennis").rglob("*.mp4"))
    frames = everest.read_clip(video, frames=8, stride=2, size=64).transpose(0, 1)  # (T, 3, H, W)
    prepared = processor(frames, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(prepared.transpose(0, 1), everest.normalize(frames.transpose(0, 1)))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["id2label"]["2"] == "LABEL_2"


LACKED = {  # settings of a model that transformers lacks
    "model.positions=rotary": {"positions": "rotary"},
    "model.positions=learned-separable": {"positions": "learned-separable"},
    "model.class_token=true": {"class_token": True},
    "model.rotary=dinov3": {"rotary": "dinov3"},
    "model.norm_before=true": {"norm_before": True},
    "model.mlp=swiglu": {"mlp": "swiglu"},
    "model.input=differences": {"input": "differences"},
    "model.pooling=class-attention": {"pooling": "class-attention"},
    "model.embedding_layers=2": {"embedding_layers": 2},
    "model.tubelet=[2,8,16]": {"tubelet": (2, 8, 16)},
}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        *((replace(CLASSIFIER, model=replace(SMALL, **part)), text) for text, part in LACKED.items()),
        (replace(CLASSIFIER, heads=named_heads({"verb": 2, "noun": 2})), "data.heads"),
        (replace(CLASSIFIER, heads=named_heads({"verb": 2, "score": "regression"})), "data.heads"),
        (replace(CLASSIFIER, heads=named_heads({"only": 2})), "data.heads"),
        (replace(CLASSIFIER, heads=(Head(task="regression", outputs=1),)), "data.task=regression"),
        (replace(AUTOENCODER, target=PixelTargets(frames="half")), "pretrain.target.frames=half"),
    ],
)
def test_models_that_transformers_lacks_are_refused(tmp_path: Path, spec: ModelSpec, message: str):
    checkpoint = saved(tmp_path / "model.safetensors", spec, classes=None)
    assert message in refused("export", checkpoint, "--to", "hf", "--out", tmp_path / "hf", code=6)
    assert not (tmp_path / "hf").exists()


ONNX = {  # a model and the fraction that it keeps; of still clips more than the fraction left out is frozen
    "mean": (CLASSIFIER, None),
    "0.25": (CLASSIFIER, 0.25),
    "1.0": (CLASSIFIER, 1.0),
    "class-attention": (ATTENTIVE, None),
    "differences": (OF_DIFFERENCES, None),
    "st-mae": (LIKE_ST_MAE, None),
    "image models": (LIKE_IMAGE_MODELS, None),
    "still, neg-cosine": (by_distance("neg-cosine"), None),
    "still, neg-cka": (by_distance("neg-cka"), None),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "mean")) for name in ONNX]
)
def test_onnxruntime_keeps_the_same_tokens_and_computes_the_same(clips, tmp_path, name):
    (spec, keep), clips = ONNX[name], clips.clone()
    if name.startswith("still"):
        clips[..., :40, :] = clips[:, :, :2, :40].repeat(1, 1, 4, 1, 1)
    checkpoint = saved(tmp_path / "model.safetensors", spec)
    fraction = [] if keep is None else ["--keep", keep]
    run("export", checkpoint, "--to", "onnx", "--out", tmp_path / "m.onnx", *fraction)
    session = onnx_session(tmp_path / "m.onnx")
    model = everest.load_model(checkpoint)
    with torch.no_grad():
        expected, ids = model(clips, keep=keep), model.encode_kept(clips, keep)[0]
    for batch in (clips[:1], clips):
        logits, kept = session.run(["logits", "kept"], {"frames": batch.numpy()})
        assert (kept == ids[: len(batch)].numpy()).all()
        assert abs(logits - expected[: len(batch)].numpy()).max() < 1e-4
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 64, 64]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]


def test_of_an_autoencoder_without_a_recipe_the_features_are_exported_and_no_stride(clips, tmp_path: Path):
    checkpoint = saved(tmp_path / "model.safetensors", AUTOENCODER)
    document = json_of("export --to onnx", checkpoint, "--out", tmp_path / "m.onnx")
    assert (document["clip"]["frames"], document["clip"]["stride"]) == (8, None)
    assert any("do not state the stride" in note for note in document["notes"])
    with torch.no_grad():
        expected = encode_clips(everest.load_model(checkpoint), clips, None).pooled
    (features,) = onnx_session(tmp_path / "m.onnx").run(["features"], {"frames": clips.numpy()})
    assert abs(features - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", ["classifier", "autoencoder", "alone", "unknown"])
def test_exports_state_the_stride_of_their_clips(classifier_run, autoencoder_run, tmp_path, kind):
    checkpoint = autoencoder_run if kind == "autoencoder" else classifier_run
    if kind in ("alone", "unknown"):
        checkpoint = tmp_path / "alone.safetensors"
        weights = read_weights(classifier_run / "model.safetensors")
        (weights if kind == "alone" else replace(weights, clip=None)).save(checkpoint)
    about = make_graph(open_model(checkpoint, kind="transformer"), keep=None).metadata
    stride, sampling = (None, None) if kind == "unknown" else (2, "dense")
    expected = {"frames": 4, "stride": stride, "sampling": sampling, "fps": None, "height": 32, "width": 32}
    clip = json.loads(about["clip"])
    assert (clip.pop("seconds") is None) == (kind != "classifier")  # needs the training list
    assert clip == expected
    given = json.loads(about["input"])
    assert (given["dtype"], given["values"]) == ("float32", "(pixel / 255 - mean) / std")


def test_differences_of_transformers_are_noted(tmp_path: Path):
    def exported(spec: ModelSpec, name: str) -> dict[str, Any]:
        checkpoint = saved(tmp_path / "model.safetensors", spec)
        replace(read_weights(checkpoint), clip={"stride": 3, "sampling": "dense"}).save(checkpoint)
        return json_of("export --to hf", checkpoint, "--out", tmp_path / name)

    notes = exported(CLASSIFIER, "hf")["notes"]
    assert "all 64 tokens, this model was trained with 38" in notes[0]
    assert "1e-05" in notes[1]
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["frame_sample_rate"] == 3
    document = exported(replace(CLASSIFIER, selection=AllTokens(), norms=Norms(last_eps=1e-5)), "other")
    assert (document["notes"], document["difference"]) == ([], 0)


def test_a_classifier_trained_on_tubes_keeps_the_requested_ratio_by_change(clips: Tensor, tmp_path: Path):
    spec = replace(CLASSIFIER, selection=TubeDropout(keep_ratio=0.8))
    path = saved(tmp_path / "model.safetensors", spec)
    expected = everest.load_model(path).encode_kept(clips, 0.5)[0]
    kept = make_graph(open_model(path), keep=0.5)(clips)[1]
    assert torch.equal(kept, expected)
    assert kept.size(1) == spec.grid.num_tokens // 2


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path):
    shown = make_graph(open_model(saved(tmp_path / "model.safetensors", CLASSIFIER)), keep=None)

    def changed(change: Callable[[Tensor], Tensor], *, ids: int = 0) -> RunFile:
        return lambda clips: (change(shown(clips)[0]), shown(clips)[1] + ids)

    with torch.no_grad():
        assert compare(shown, shown, subject="it").largest == 0
        for run_file, message in (
            (changed(lambda logits: logits + 1e-3), "it computes something else"),
            (changed(lambda logits: logits / 0 * 0), r"it computes something else .*nan"),
            (changed(lambda logits: logits, ids=1), "it keeps other tokens"),
        ):
            with pytest.raises(EnvironmentProblem, match=message):
                compare(shown, run_file, subject="it")


@torch.no_grad()
def test_integers_may_change_outputs_by_half_of_their_deviation_and_no_tokens(tmp_path: Path, clips: Tensor):
    opened = open_model(saved(tmp_path / "model.safetensors", CLASSIFIER))
    shown = make_graph(opened, keep=None)
    heads = Head(name="a", task="regression", outputs=1), Head(name="b", outputs=2)
    shown.spec, shown.head_widths = replace(CLASSIFIER, heads=heads), [1, 2]
    logits, kept = shown(clips)

    def compared(outputs: Tensor, ids: Tensor = kept) -> float:
        return compare(shown, lambda _: (outputs, ids), subject="it", calibration=[clips]).relative

    moved = torch.tensor([0.1, 0.0, 0.0])
    assert compared(logits + moved * logits[:, 0].std(correction=0)) == pytest.approx(0.1)
    for outputs, ids, message in (
        (logits, kept.flip(0), "keeps other tokens"),
        (logits / 0, kept, "changes the outputs by (nan|inf)"),
        (logits.flip(0), kept, "changes the outputs by"),
        (logits.mean(dim=0).expand(3, 3), kept, "changes the outputs by"),
    ):
        with pytest.raises(CheckpointError, match=message):
            compared(outputs, ids)


def test_nothing_is_replaced_by_default_and_the_suffix_must_match(tmp_path: Path):
    checkpoint = saved(tmp_path / "model.safetensors", CLASSIFIER)
    there, folder = tmp_path / "m.onnx", tmp_path / "hf"
    there.write_text("precious")
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    before = saved(folder / "model.safetensors", AUTOENCODER).read_bytes()
    assert "exists" in refused("export --to onnx", checkpoint, "--out", there, code=2)
    assert "holds other files" in refused("export --to hf", checkpoint, "--out", folder, code=2)
    other = tmp_path / "m.pt2"
    assert "end its name in .onnx" in refused("export --to onnx", checkpoint, "--out", other, code=2)
    assert there.read_text() == "precious"
    assert (folder / "model.safetensors").read_bytes() == before
    run("export --to hf --overwrite", checkpoint, "--out", folder)
    assert (folder / "model.safetensors").read_bytes() != before
    written = {"config.json", "preprocessor_config.json", "README.md", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == {"thesis.txt", *written}


def test_new_weights_are_never_next_to_an_old_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, folder = saved(tmp_path / "model.safetensors", CLASSIFIER), tmp_path / "hf"
    run("export", first, "--to", "hf", "--out", folder)

    def full_disk(*_: object) -> None:
        assert not (folder / "config.json").exists()
        raise EnvironmentProblem("the disk is full")

    command = ("export", first, "--to", "hf", "--out", folder)
    with monkeypatch.context() as patch:
        patch.setattr("everest.checkpoints.transformers.write_text", full_disk)
        assert "the disk is full" in refused(*command, "--overwrite", code=5)
    assert not (folder / "config.json").exists()


def test_invalid_options_are_refused(tmp_path: Path):
    of_classes = saved(tmp_path / "model.safetensors", CLASSIFIER)
    autoencoder = saved(tmp_path / "mae.safetensors", AUTOENCODER)
    for checkpoint, options, message in (
        (of_classes, "--to hf --keep 0.5", "does not support --keep"),
        (of_classes, "--to onnx --keep 0.001", "none is left to encode"),
        (of_classes, "--to onnx --keep 2", "give keep ratios"),
        (autoencoder, "--to onnx --keep 0.5", "goes with a classifier"),
        (of_classes, "--to onnx --precision int8", "--calibrate LIST"),
        (of_classes, "--to hf --precision int8", "needs --to onnx"),
        (of_classes, "--to onnx --calibrate list.csv", "--calibrate needs --precision int8"),
    ):
        out = tmp_path / ("hf" if "hf" in options else "m.onnx")
        assert message in refused(f"export {options}", checkpoint, "--out", out, code=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_packages_are_named_with_the_line_that_installs_them(tmp_path, monkeypatch):
    checkpoint = saved(tmp_path / "model.safetensors", CLASSIFIER)
    monkeypatch.setattr(graph_files, "find_spec", lambda name: None)  # as where nothing is installed
    message = refused("export", checkpoint, "--to", "onnx", "--out", tmp_path / "m.onnx", code=5)
    assert "not installed: onnx, onnxscript, onnxruntime; run `pip install 'everest-video[ex" in message


def opened(checkpoint: Path, clip_files: Path) -> tuple[VideoClassifier, Tensor]:
    """The model, and two normalized clips."""
    model = everest.load_model(checkpoint)
    frames = torch.stack([everest.read_clip(clip_files / f"clip{i}.mp4", like=model) for i in range(2)])
    return model, everest.normalize(frames)


def test_a_graph_has_logits_of_classes_and_numbers_in_their_unit(mixed_run, scores_run, clip_files):
    model, clips = opened(scores_run, clip_files)
    numbers = make_graph(open_model(scores_run / "best.safetensors", kind="transformer"), keep=None)
    assert numbers.outputs == ("values", "kept")
    with torch.no_grad():
        assert torch.equal(numbers(clips)[0], model.outputs(model(clips)))
    model, clips = opened(mixed_run, clip_files)
    exported = make_graph(open_model(mixed_run / "best.safetensors", kind="transformer"), keep=None)
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
    assert (heads[2]["mean"], heads[2]["std"]) == (model.heads[2].mean, model.heads[2].std)

    # A difference counts in units of the numbers' std.
    def moved(x: Tensor, by: float) -> list[Tensor]:
        values, kept = exported(x)
        return [values + exported.unit * by, kept]

    assert compare(exported, partial(moved, by=5e-5), subject="it").largest == pytest.approx(5e-5, rel=0.2)
    with pytest.raises(EnvironmentProblem, match="computes something else"):
        compare(exported, partial(moved, by=5e-4), subject="it")
    exported.std.mul_(1e5)  # of a steep model, whose outputs float32 rounds more coarsely
    compare(exported, partial(moved, by=5e-4), subject="it")
    with pytest.raises(EnvironmentProblem, match="computes something else"):
        compare(exported, partial(moved, by=1.0), subject="it")


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
