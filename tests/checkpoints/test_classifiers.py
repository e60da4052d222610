"""Every kind of classifier, saved and used by every command: a network, features of a frozen encoder with
their change, a linear model on images, and the mean of two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import json_of, run
from tiny_models import randomized

import everest
from everest.checkpoints.describe import save_classifier
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.inference.timelines import Timelines
from everest.models.classifier import Classifier
from everest.models.linear import ImageSpec
from everest.models.mean import MeanClassifier
from everest.models.spec import classifier_spec

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
    spec = ImageSpec(frames=data.frames, size=data.frame_size, pixels=data.pixels, heads=heads)
    return randomized(spec.build(), 0.01)


def mean(recipe: Recipe, heads: tuple[Head, ...] = HEADS) -> Classifier:
    return MeanClassifier.of([frozen(recipe, heads), images(recipe, heads)])


KINDS = {made.__name__: made for made in (network, frozen, images, mean)}


@pytest.fixture(scope="module")
def loaded(recipe: Path) -> Recipe:
    return load_recipe(recipe)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, loaded: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose delivered model is of a kind."""
    torch.manual_seed(0)
    project = tmp_path_factory.mktemp(request.param) / "project"
    (project / "model").mkdir(parents=True)
    (project / "project.json").write_text('{"window": 0.5}')
    save_classifier(project / "model", KINDS[request.param](loaded), loaded, class_names=NAMES)
    return project


def test_it_is_opened_by_every_command_that_predicts(folder: Path, clip_files: Path, tmp_path: Path):
    model = everest.load_model(folder)
    assert isinstance(model, Classifier)
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
    assert json_of("budget", "--timeline", saved)
    evaluation = json_of("eval -q", "-c", folder, "--predictions", tmp_path / "predictions.csv")
    assert evaluation["videos"] == 4
    assert everest.evaluate(model)["top1"] == evaluation["top1"]
    assert "GMACs" in run("eval -q", "-c", folder)
    measured = json_of("profile --latency", "-c", folder, "--data", clip_files)
    assert measured["latency"]["p50_ms"] > 0
    facts = json_of("convert --inspect", folder / "model" / "model.safetensors")
    assert (facts["kind"], facts["classes"]) == ("classifier", list(NAMES))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_its_graph_computes_the_same(folder: Path, clip_files: Path, tmp_path: Path, precision: str):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    calibrate = ["--precision", "int8", "--calibrate", clip_files] if precision == "int8" else []
    document = json_of("export --to onnx", folder, "--out", file, *calibrate)
    assert document["difference"] < (1e-4 if precision == "fp32" else 1)
    ours, theirs = (
        json_of(
            "eval -q", "-c", checkpoint, "--recipe", folder / "model" / "recipe.yaml", "--predictions", csv
        )
        for checkpoint, csv in ((folder, tmp_path / "ours.csv"), (file, tmp_path / "theirs.csv"))
    )
    assert ours["keep"] == theirs["keep"]
    values = [
        np.loadtxt(tmp_path / f"{name}.csv", delimiter=",", skiprows=1, usecols=-1)
        for name in ("ours", "theirs")
    ]
    assert np.abs(values[0] - values[1]).max() < (1e-4 if precision == "fp32" else 0.1)
