"""The choice among candidates by outputs for videos of groups that they have not seen."""

import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from small_projects import RESULT

from everest.config.heads import MULTI_LABEL, Head
from everest.config.recipe import load_recipe
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.metrics.difference import estimate_difference
from everest.metrics.predictions import HeadPredictions
from everest.probes.linear import STRENGTHS, compute_losses, cross_predict, fit_linear, make_group_splits
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.weights import read_weights
from everest.video.writer import write_video
from everest_workflows.project.candidates import (
    MEAN,
    FeatureTable,
    flag_sizes,
    make_network_candidate,
    measure_clip_seconds,
)
from everest_workflows.project.choice import BestCandidate, choose
from everest_workflows.project.feature_kinds import (
    FEATURES,
    FROZEN,
    IMAGES,
    LINEAR,
    FeatureKind,
    Starts,
)
from everest_workflows.project.request import Project, Request
from everest_workflows.project.result import NETWORK, MeasuredTest
from everest_workflows.project.summary import write_methods

HEAD = Head(outputs=2)
LABELS = np.arange(40) % 2
GROUPS = [f"g{number // 4}" for number in range(40)]


def sure(fraction: float, *, sure_of: float = 0.9, seed: int = 0) -> np.ndarray:
    """Outputs (40, 2) of which a fraction is right, each with the same probability."""
    right = np.random.default_rng(seed).permutation(40) < 40 * fraction
    first = np.where(right == (LABELS == 0), sure_of, 1 - sure_of)
    return np.stack([first, 1 - first], axis=1).astype(np.float32)


def only(rows: np.ndarray, last: int) -> np.ndarray:
    """Outputs for the last samples alone, as of a network that has learned from the others."""
    return np.where(np.arange(40)[:, None] >= 40 - last, rows, np.nan).astype(np.float32)


def test_the_lowest_loss_wins_and_a_tie_goes_to_the_simpler():
    better = {IMAGES: sure(0.6), FROZEN: sure(1.0)}
    assert choose(better, LABELS, GROUPS, HEAD, forced=None).name == FROZEN
    equal = {IMAGES: sure(0.8), FROZEN: sure(0.8)}
    assert choose(equal, LABELS, GROUPS, HEAD, forced=None).name == IMAGES
    mistakes_elsewhere = {IMAGES: sure(0.75, seed=1), FROZEN: sure(0.75, seed=2)}
    choice = choose(mistakes_elsewhere, LABELS, GROUPS, HEAD, forced=None)
    assert choice.name == MEAN
    assert set(choice.members) == {IMAGES, FROZEN}
    assert choice.validation[IMAGES] == choice.validation[FROZEN] == 75.0


def test_a_network_needs_a_clearly_lower_loss_on_the_validation_list():
    images = sure(0.6)
    better, worse = only(sure(1.0), 16), only(sure(0.4), 16)
    assert choose({IMAGES: images, NETWORK: better}, LABELS, GROUPS, HEAD, forced=None).name == NETWORK
    assert choose({IMAGES: images, NETWORK: worse}, LABELS, GROUPS, HEAD, forced=None).name == IMAGES
    one = only(sure(1.0), 1)  # a single validation video tells nothing
    assert choose({IMAGES: images, NETWORK: one}, LABELS, GROUPS, HEAD, forced=None).name == IMAGES
    assert choose({IMAGES: images, NETWORK: worse}, LABELS, GROUPS, HEAD, forced=NETWORK).name == NETWORK


@pytest.mark.parametrize(
    ("labels", "head"),
    [
        (np.arange(40) % 2, Head(outputs=2)),
        (
            np.stack([np.arange(40) % 2, np.arange(40) % 4 == 0], axis=1).astype(bool),
            Head(task=MULTI_LABEL, outputs=2),
        ),
        (np.arange(40.0), Head(task="regression", outputs=1, mean=19.5, std=11.5)),
    ],
    ids=["single-label", "multi-label", "regression"],
)
def test_a_choice_says_whether_it_has_learned_more_than_frequencies(labels, head):
    right = np.eye(2)[labels] if head.task == "single-label" else labels.reshape(40, -1)
    wrong = 1 - right if head.task != "regression" else right[::-1]
    for outputs, learned in ((right, True), (wrong, False)):
        choice = choose({IMAGES: outputs.astype(np.float32)}, labels, GROUPS, head, forced=None)
        assert choice.learned == learned
        assert ("guessing" in choice.explanation) != learned


def test_a_gain_in_few_groups_is_at_most_100_points():
    def part(outputs: np.ndarray) -> HeadPredictions:
        return HeadPredictions(head=HEAD, labels=LABELS[:3], outputs=outputs[:3, None])

    right, wrong = np.eye(2, dtype=np.float32)[LABELS], np.eye(2, dtype=np.float32)[1 - LABELS]
    wrong[0] = right[0]
    assert estimate_difference(part(right), part(wrong), GROUPS[:12:4]) == [-100, 100]


def test_videos_differ_in_the_size_and_rate_of_their_frames(tmp_path: Path):
    samples = []
    for name, side, fps in (("a", 32, 10), ("b", 32, 20), ("c", 48, 10), ("d", 32, 10)):
        write_video(tmp_path / f"{name}.mp4", torch.zeros(2, side, 32, 3, dtype=torch.uint8), fps=fps)
        samples.append(Sample(path=str(tmp_path / f"{name}.mp4")))
    assert flag_sizes(samples).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert flag_sizes(samples[::3]).tolist() == [[1], [1]]


def test_a_mean_is_of_models_with_other_features():
    outputs = {IMAGES: sure(0.6), FROZEN: sure(0.9, seed=1), "frozen-motion": sure(0.9, seed=2)}
    assert set(choose(outputs, LABELS, GROUPS, HEAD, forced=None).mean_of) == {FROZEN, IMAGES}


@pytest.mark.parametrize("name", ["linear-images", "images-motion", "frozen-motion"])
@pytest.mark.parametrize("task", ["single-label", "regression"])
def test_the_model_of_a_candidate_computes_its_outputs(recipe: Path, tmp_path: Path, name: str, task):
    torch.manual_seed(0)
    heads = (Head(task=task, outputs=1 if task == "regression" else 3, mean=2.0, std=3.0),)
    loaded, classes = load_recipe(recipe), Classes(heads=heads, names=())
    made = {name: kind.make(loaded, classes, Starts()) for name, kind in FEATURES.items()}
    modules = {kind: module for kind, module in made.items() if module is not None}
    modules["frozen"] = modules["random"]
    clips = torch.randint(0, 256, (12, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        features = {kind: module.eval().features(clips).numpy() for kind, module in modules.items()}
    samples = [Sample(path=str(number)) for number in range(12)]
    table = FeatureTable(modules=modules, rows={str(n): n for n in range(12)}, features=features)
    labels = np.arange(12.0) if task == "regression" else np.arange(12) % 3
    (layer,) = fit_linear(table.of(name, samples), labels, heads[0], strengths=[0.1])
    model = table.model(name, layer).eval()
    with torch.no_grad():
        found = model.outputs(model(clips)).numpy()
    np.testing.assert_allclose(found, layer.outputs(table.of(name, samples), heads[0]), atol=2e-4)
    assert not table.modules["images"].head.weight.any()  # the table's own modules stay as they were


def test_a_new_kind_of_features_is_timed_and_described(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    make = Mock(wraps=FEATURES["images"].make)
    monkeypatch.setitem(FEATURES, "corners", FeatureKind(make, "the corners of a clip"))
    monkeypatch.setitem(LINEAR, "images-corners", ("images", "corners"))
    loaded, request = load_recipe(recipe), Request(videos="")
    measure_clip_seconds(loaded, Classes(heads=(HEAD,), names=("a", "b")))
    make.assert_called_once()
    lists = {"section": {}, "folds": [], "window": None, "possible_folds": None}
    project = Project(**lists, request=request, files={}, planned_minutes=1.0)
    choice = BestCandidate(name="images-corners", reason="")
    test = MeasuredTest.of(RESULT)
    methods = write_methods(project, choice, loaded, test)
    assert " pixels each) and the corners of a clip. On 20 videos of 20 groups held out" in methods


def test_without_a_second_group_the_simplest_is_taken():
    nothing = np.full((40, 2), np.nan, np.float32)
    choice = choose({IMAGES: nothing, FROZEN: nothing}, LABELS, ["g"] * 40, HEAD, forced=None)
    assert (choice.name, choice.validation) == (IMAGES, {IMAGES: None, FROZEN: None})


@pytest.mark.parametrize("task", ["single-label", MULTI_LABEL, "regression"])
def test_cross_predictions_come_from_models_of_other_groups(task):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    score = features[:, 0] * 3
    head = Head(task=task, outputs=1 if task == "regression" else 2, mean=0.0, std=1.0)
    labels = {"single-label": (score > 0).astype(int), "regression": score}.get(task)
    labels = np.stack([score > 0, score < 1], axis=1) if labels is None else labels
    splits = make_group_splits(labels, GROUPS, head, seed=0)
    assert sorted(np.concatenate([tested for _, tested in splits]).tolist()) == list(range(40))
    for fitted, tested in splits:
        assert not {GROUPS[i] for i in fitted} & {GROUPS[i] for i in tested}
    strength, outputs = cross_predict(features, labels, head, splits, strengths=STRENGTHS)
    fitted, tested = splits[0]
    (model,) = fit_linear(features[fitted], labels[fitted], head, strengths=[strength])
    expected = model.outputs(features[tested], head)
    np.testing.assert_allclose(outputs[tested], expected)
    guess = {"regression": np.zeros((40, 1))}.get(task, np.full((40, 2), 0.5)).astype(np.float32)
    assert compute_losses(outputs, labels, head).mean() < compute_losses(guess, labels, head).mean() / 2


@pytest.mark.parametrize("task", ["single-label", MULTI_LABEL, "regression"])
def test_fits_of_more_features_than_videos_are_those_of_all_features(task):
    """Twice the videos at half the strength give the same fit, and outnumber the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 30)).astype(np.float32)
    head = Head(task=task, outputs=1 if task == "regression" else 2, mean=0.0, std=1.0)
    score = features[:, :3].sum(axis=1)
    labels = {"single-label": (score > 0).astype(int), "regression": score}.get(task)
    labels = np.stack([score > 0, score < 1], axis=1) if labels is None else labels
    models = fit_linear(features, labels, head, strengths=[0.01, 1.0])
    repeated = fit_linear(
        np.tile(features, (2, 1)), np.concatenate([labels] * 2), head, strengths=[0.005, 0.5]
    )
    for few, many in zip(models, repeated, strict=True):
        np.testing.assert_allclose(few.outputs(features, head), many.outputs(features, head), atol=2e-3)


@pytest.mark.parametrize("task", ["single-label", MULTI_LABEL])
def test_a_network_has_its_last_weights_and_own_thresholds(classifier_run, clip_files, tmp_path, task):
    run = shutil.copytree(classifier_run, tmp_path / "run")
    last = read_weights(run / WEIGHTS_FILE)
    heads = [{**head, "task": task} for head in last.settings["heads"]]
    last = replace(last, settings={**last.settings, "heads": heads})
    last.save(run / WEIGHTS_FILE)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in last.tensors.items()}
    replace(last, tensors=zeros).save(run / "best.safetensors")
    label = (1,) if task == MULTI_LABEL else 1
    samples = [Sample(path=str(path), labels=(label,)) for path in sorted(clip_files.glob("*.mp4"))[:3]]
    candidate = make_network_candidate(run, samples, samples[1:])
    module = candidate.make()
    assert all(torch.equal(x, last.tensors[name]) for name, x in module.state_dict().items())
    assert np.isnan(candidate.outputs).all(axis=1).tolist() == [True, False, False]
    (head,) = module.heads
    assert module.spec.heads == (head,)
    assert (min(candidate.outputs[1:, 1]) > head.thresholds[1]) or task != MULTI_LABEL
    assert bool(head.chosen_thresholds) == (task == MULTI_LABEL)
