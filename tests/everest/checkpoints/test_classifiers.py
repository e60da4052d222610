"""Every kind of classifier, saved and used by every command: a network, features of a frozen encoder with
their change, a linear model on images, on histograms of motion, on several kinds of features, and a mean."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import json_of, refused, run
from tiny_models import randomized

import everest
from everest.checkpoints.describe import save_classifier
from everest.config.heads import Head, Task
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.models.classifier import Classifier
from everest.models.image_classifier import (
    BINS,
    IMAGE_SIDE,
    NUM_HISTOGRAM_FEATURES,
    PIXEL_FEATURES,
    PixelSpec,
)
from everest.models.mean import MeanClassifier, MeanSpec
from everest.models.spec import classifier_spec
from everest.system.weights import read_weights
from everest_workflows.recordings.timelines import Timelines

NAMES = ("walk", "run")
HEADS = (Head(outputs=2),)


def trained(model: Classifier) -> Classifier:
    """A network whose outputs differ as much as after training."""
    randomized(model, 0.05)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


def network(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    return trained(classifier_spec(recipe, heads).build())


def frozen(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    """Mean and change of the tokens of another selection."""
    spec = classifier_spec(recipe, heads)
    selection = everest.strategies.RedundancyRobust(keep_ratio=0.6, visible_ratio=None)
    spec = replace(spec, model=replace(spec.model, pooling="mean-change"), selection=selection)
    return trained(spec.build())


def images(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    data = recipe.data
    spec = PixelSpec(frames=data.frames, size=data.frame_size, pixels=data.pixels, heads=heads)
    return randomized(spec.build(), 0.01)


def motion(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    spec = images(recipe, heads).spec
    return randomized(replace(spec, features="motion").build(), 1.0)


def joined(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    """A linear model on the features of an encoder and on histograms of motion."""
    return MeanClassifier.of([frozen(recipe, heads), motion(recipe, heads)], mean_of="logits")


def mean(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    return MeanClassifier.of([joined(recipe, heads), images(recipe, heads)])


KINDS = {made.__name__: made for made in (network, frozen, images, motion, joined, mean)}


@pytest.fixture(scope="module")
def loaded(recipe: Path) -> Recipe:
    return load_recipe(recipe)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, loaded: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose selected model is of a kind."""
    torch.manual_seed(0)
    project = tmp_path_factory.mktemp(request.param) / "project"
    (project / "model").mkdir(parents=True)
    (project / "project.json").write_text('{"window": 0.5}')
    save_classifier(project / "model", KINDS[request.param](loaded), loaded, class_names=NAMES)
    return project


def test_it_is_opened_by_every_command_that_predicts(folder: Path, clip_files: Path, tmp_path: Path):
    model = everest.load_model(folder)
    assert model.file == folder / "model" / "model.safetensors"
    assert (model.classes, model.clip.stride) == (NAMES, 2)
    video = clip_files / "clip0.mp4"
    with torch.no_grad():
        clip = model.transform(video)
        expected = model.outputs(model(clip))[0]
        raw = model.clip.read(video)[None]
        torch.testing.assert_close(model.outputs(model(raw))[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.features(clip), model.features(raw), atol=1e-4, rtol=1e-5)
    (row,) = everest.predict(model, video)
    assert json_of("predict -q", video, "-c", folder) == [row]
    probabilities = {part["label"]: part["probability"] for part in row["predictions"]}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    # The window as in the project.
    saved = tmp_path / "timeline.safetensors"
    run("timeline -q", video, "-c", folder, "--save", saved)
    assert np.allclose(np.diff(Timelines.load(saved).videos[0].starts), 0.125)
    sampled = run("budget --draw 2 --window 0.5", "--timeline", saved, "--output", tmp_path / "windows.csv")
    assert "windows.csv" in sampled
    evaluation = json_of("eval -q", "-c", folder, "--predictions", tmp_path / "predictions.csv")
    assert evaluation["videos"] == 4
    assert everest.evaluate(model)["top1"] == evaluation["top1"]
    assert "GMACs" in run("eval -q", "-c", folder)
    measured = json_of("profile --latency", "-c", folder, "--data", clip_files)
    assert measured["latency"]["p50_ms"] > 0
    facts = json_of("convert --inspect", folder / "model" / "model.safetensors")
    assert (facts["kind"], facts["classes"]) == ("classifier", list(NAMES))


@pytest.mark.parametrize(  # networks: test_export.py
    ("folder", "precision"),
    [
        *(("frozen", "int8"), ("mean", "fp32")),  # the mean has a member of each other kind
        *(
            pytest.param(kind, precision, marks=pytest.mark.slow)
            for kind, precision in (
                *(("images", "fp32"), ("images", "int8"), ("motion", "fp32"), ("motion", "int8")),
                *(("frozen", "fp32"), ("mean", "int8")),
            )
        ),
    ],
    indirect=["folder"],
)
def test_its_graph_computes_the_same(folder: Path, clip_files: Path, tmp_path: Path, precision: str):
    pytest.importorskip("onnxruntime")
    file, recipe = tmp_path / "model.onnx", folder / "model" / "recipe.yaml"
    calibrate = ["--precision", "int8", "--calibrate", clip_files] if precision == "int8" else []
    document = json_of("export --to onnx", folder, "--out", file, *calibrate)
    is_unchanged = precision == "int8" and folder.parent.name.startswith(("images", "motion"))
    assert ("nothing to quantize" in "".join(document["notes"])) == is_unchanged
    tables = []
    for checkpoint in (folder, file):
        predictions = tmp_path / f"{checkpoint.name}.csv"
        run("eval -q", "-c", checkpoint, "--recipe", recipe, "--predictions", predictions)
        tables.append(list(csv.DictReader(predictions.read_text().splitlines())))
    for ours, theirs in zip(*tables, strict=True):
        assert ours["predicted"] == theirs["predicted"]
        difference = abs(float(ours["probability"]) - float(theirs["probability"]))
        assert difference < (1e-3 if precision == "fp32" else 0.1)


def test_features_are_the_input_of_the_head(folder: Path, clip_files: Path, tmp_path: Path):
    model, video = everest.load_model(folder), clip_files / "clip1.mp4"
    out = tmp_path / "features.npz"
    run("extract -q --views 1x1", video, "-c", folder, "--output", out)
    features = torch.from_numpy(np.load(out)["features"])
    width = {"network": 24, "frozen": 96, "images": 2 * IMAGE_SIDE**2, "motion": NUM_HISTOGRAM_FEATURES}
    width["joined"] = width["frozen"] + width["motion"]
    width["mean"] = width["joined"] + width["images"]
    assert features.shape == (1, width[folder.parent.name.rstrip("0123456789")])
    assert torch.equal(everest.extract(model, video, clips=1, crops=1).features, features)


@pytest.mark.parametrize("task", ["single-label", "multi-label", "regression"])
def test_a_mean_has_the_mean_of_the_outputs(loaded: Recipe, task: Task):
    torch.manual_seed(0)
    outputs = 1 if task == "regression" else 3
    only = Head(task=task, outputs=outputs, mean=5.0 * (outputs == 1), std=2.0)
    for heads in ((only,), (replace(only, name="a"), Head(name="b", outputs=4))):
        model = mean(loaded, heads).eval()
        clips = torch.randint(0, 256, (5, 3, 4, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            first, second = model.members[0].members
            first.head.bias.copy_(torch.linspace(-120, 120, model.num_classes))
            expected = sum(member.outputs(member(clips)) for member in model.members) / 2
            found = model.outputs(model(clips))
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(model.members[0](clips), (first(clips) + second(clips)) / 2)
            assert not torch.allclose(model.features(clips, keep=0.25), model.features(clips))
    assert MeanSpec.from_settings(model.spec.dump(), source=Path("here")) == model.spec


def test_images_are_those_of_the_bytes_and_have_no_tokens(loaded: Recipe):
    model = images(loaded)
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    clips[0] = clips[0, :, :1]  # still
    found = model.features(model.pixels.normalize(clips))
    assert torch.equal(found, PIXEL_FEATURES["images"](clips))
    assert not found[0, IMAGE_SIDE**2 :].any()
    gray = clips[1].float().mean(dim=(0, 1))
    expected = gray.unflatten(0, (IMAGE_SIDE, 2)).unflatten(2, (IMAGE_SIDE, 2)).mean(dim=(1, 3))
    torch.testing.assert_close(found[1, : IMAGE_SIDE**2], expected.flatten())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(clips), model.head(found))
    with pytest.raises(ValueError, match="a linear model on images has no tokens"):
        model(clips, keep=0.5)
    with pytest.raises(ValueError, match="expected clips of shape"):
        model(clips[:, :, :2])


@pytest.mark.parametrize("steps", [1, 2])
def test_histograms_say_where_an_edge_moves_and_not_its_color(steps: int):
    """A soft vertical edge moves to the right, in the left half of the picture; then to the left."""
    along = torch.arange(32.0)
    places = 6 + steps * torch.arange(4.0)
    frames = 100 + 100 * torch.sigmoid(along - places[:, None])  # (T, W)
    clips = frames[:, None].expand(1, 3, 4, 32, 32).round().byte()
    motion_features = PIXEL_FEATURES["motion"]
    fractions = motion_features(torch.cat([clips, clips.flip(2), 200 - clips])).square()  # (B, F)
    edges, moves, _ = fractions.split(NUM_HISTOGRAM_FEATURES // 3, dim=1)
    whole = [part[:, -BINS:].argmax(dim=1).tolist() for part in (edges, moves)]  # of the grid of one cell
    assert whole == [[0, 0, 0], [0, BINS // 2, 0]]
    torch.testing.assert_close(fractions[0], fractions[2], atol=0.02, rtol=0)
    cells = moves[0, : BINS * 16].unflatten(0, (BINS, 4, 4)).sum(dim=(0, 1))  # of each column
    assert cells[:2].sum() > 0.95 * cells.sum()
    torch.testing.assert_close(fractions.sum(dim=1), torch.full((3,), 9.0), atol=1e-3, rtol=0)
    still = motion_features(clips[:, :, :1])
    assert still.count_nonzero(dim=1) == still[:, : NUM_HISTOGRAM_FEATURES // 3].count_nonzero(dim=1) > 0


def test_what_needs_tokens_is_refused(loaded: Recipe, recipe: Path, clip_files: Path, tmp_path: Path):
    run_folder, video = tmp_path / "run", clip_files / "clip0.mp4"
    file = save_classifier(run_folder, images(loaded), loaded, class_names=NAMES)
    out = ("--output", tmp_path / "out.npz")
    none = "a linear model on images, which has no transformer; name a run of pretrain or finetune"
    assert none in refused("extract --features tokens", video, "-c", run_folder, *out, code=6)
    assert none in refused("visualize-mask", video, "-c", run_folder, "-o", tmp_path, code=6)
    assert none in refused("probe -q", "-c", run_folder, code=6)
    assert none in refused("finetune -q", "-r", recipe, "--init", file, "-o", tmp_path / "new", code=6)
    assert "use --to onnx" in refused("export --to hf", file, "-o", tmp_path / "hf", code=6)
    export = ("export --to onnx", run_folder, "-o", tmp_path / "m.onnx")
    for command in (("predict", video, "-c", run_folder), export):
        message = refused(*command, "--keep", 0.5, code=2)
        assert "--keep 0.5: a linear model on images has no tokens; leave it out" in message


def test_equal_content_has_equal_bytes_and_other_settings_are_refused(loaded: Recipe, tmp_path: Path):
    torch.manual_seed(0)
    model = mean(loaded)
    first, again = (save_classifier(tmp_path / name, model, loaded, class_names=NAMES) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    weights = read_weights(first)
    settings = weights.settings | {"heads": [{"outputs": 3}]}
    replace(weights, settings=settings).save(first)
    with pytest.raises(CheckpointError, match="other clips or heads than the mean"):
        everest.load_model(first)
