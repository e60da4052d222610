from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import called, json_of, refused
from task_runs import SCORES, write_list

import everest
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.inference.opened_model import OpenedModel
from everest.lists.sample import Sample
from everest.probes.classifiers import NEIGHBORS, TEMPERATURE, attentive, nearest_neighbors
from everest.probes.linear import choose_held_out, linear
from everest.probes.probe import encode_set
from everest.system.events import ignore_event

CPU = torch.device("cpu")
NUMBER = Head(task="regression", outputs=1)


@pytest.fixture
def runs(classifier_run: Path, autoencoder_run: Path) -> dict[str, Path]:
    return {"finetune": classifier_run, "pretrain": autoencoder_run}


def probed(*arguments: object) -> dict[str, Any]:
    return json_of("probe -q", *arguments)


def test_neighbors_vote_by_their_cosine():
    rng = np.random.default_rng(0)
    features, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (60, 5))
    labels = rng.integers(0, 3, size=60)
    found = nearest_neighbors(features, labels, test, Head(outputs=4))
    for row, one in zip(found, test, strict=True):
        cosine = features @ one / np.linalg.norm(features, axis=1) / np.linalg.norm(one)
        votes = np.zeros(4)
        for place in np.argsort(-cosine)[:NEIGHBORS]:
            votes[labels[place]] += np.exp(cosine[place] / TEMPERATURE)
        np.testing.assert_allclose(row, votes / votes.sum(), rtol=1e-4)
    classes = Head(task="multi-label", outputs=4)  # the output of several classes and of a number is a mean
    np.testing.assert_allclose(
        nearest_neighbors(features, np.eye(4)[labels], test, classes), found, rtol=1e-5, atol=1e-7
    )
    numbers = nearest_neighbors(features, labels.astype(np.float64), test, NUMBER)
    np.testing.assert_allclose(numbers[:, 0], found @ [0, 1, 2, 3], rtol=1e-5)
    few = np.eye(3, dtype=np.float32)  # fewer than the neighbors all vote
    assert nearest_neighbors(few, np.array([0, 1, 1]), few[:1], Head(outputs=2))[0, 0] > 0.999


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), seed=st.integers(0, 3))
@settings(max_examples=60)
def test_a_part_of_each_class_is_held_out_and_none_loses_all(labels: list[int], seed: int):
    held = choose_held_out(np.array(labels), seed)
    assert np.array_equal(held, choose_held_out(np.array(labels), seed))
    for label in set(labels):
        chosen = held[np.array(labels) == label]
        assert chosen.sum() == (0 if len(chosen) == 1 else max(len(chosen) // 5, 1))


def test_a_linear_probe_separates_what_a_plane_does_and_knows_absent_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=80) * 2  # class 1 has no training video
    features = rng.normal(size=(80, 16)).astype(np.float32) * np.linspace(1, 1000, 16, dtype=np.float32)
    features[:, 0] += 6 * (labels - 1)
    found = linear(features[:60], labels[:60], features[60:], Head(outputs=3), seed=0)
    assert found.shape == (20, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found[:, 1] == 0).all()
    assert (found.argmax(axis=1) == labels[60:]).all()


def marked_tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (count, 12, 16); one, anywhere, is marked: its sign is the class, the others' are noise."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(count, 12, 16)).astype(np.float32)
    labels, places = rng.integers(0, 2, size=count), rng.integers(0, 12, size=count)
    tokens[..., 0] = 0
    tokens[np.arange(count), places, 0] = 5
    tokens[..., 1] = 3 * rng.choice([-1, 1], size=(count, 12))
    tokens[np.arange(count), places, 1] = 3 * (2 * labels - 1)
    return tokens, labels


def test_an_attentive_probe_finds_the_token_that_counts_and_repeats_itself():
    tokens, labels = marked_tokens(400)
    head = Head(outputs=2)
    found = [
        attentive(tokens[:300], labels[:300], tokens[300:], head, heads=2, seed=seed, device=CPU)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert (found[0].argmax(axis=1) == labels[300:]).mean() > 0.9
    pooled = linear(tokens[:300].mean(axis=1), labels[:300], tokens[300:].mean(axis=1), head, seed=0)
    assert (pooled.argmax(axis=1) == labels[300:]).mean() < 0.75


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_an_encoder_of_either_kind_is_probed_the_same_each_time(runs, clip_files, tmp_path, kind):
    (tmp_path / "test.csv").write_text("".join(f"{clip_files}/clip{i}.mp4 {i % 2}\n" for i in (1, 2, 3)))
    command = ["-c", runs[kind], "--set", f"data.test={tmp_path}/test.csv"]
    result = probed(*command)
    assert set(result["probes"]) == {"knn", "linear", "attentive"}
    for found in result["probes"].values():
        assert {"top1", "top5", "mean_class_accuracy"} <= found.keys()
        assert found["top5"] == 100
        assert found["top1"] in (0.0, 33.3333, 66.6667, 100.0)
    assert (result["chance"], result["majority"]) == (50, 66.6667)
    assert (result["train"], result["test"], result["skipped"], result["seed"]) == (4, 3, 0, 0)
    if kind == "finetune":
        assert {**probed(*command), "seconds": 0} == {**result, "seconds": 0}
    some = probed(*command, "--probes", "linear,knn", "--set", "train.seed=3")
    assert list(some["probes"]) == ["linear", "knn"]
    assert some["seed"] == 3
    assert some["probes"]["knn"] == result["probes"]["knn"]


def test_its_features_equal_those_of_extract(runs: dict[str, Path], clip_files: Path, tmp_path: Path):
    options = [clip_files / "train.csv", "-c", runs["finetune"], "--views", "1x1"]
    samples = [Sample(path=str(clip_files / f"clip{i}.mp4"), labels=(i % 2,)) for i in range(4)]
    recipe = load_recipe(runs["finetune"] / "recipe.yaml")
    model = OpenedModel.open(runs["finetune"] / "best.safetensors", recipe=recipe, views=(1, 1))
    found = encode_set(model, samples, tmp_path / "set", with_tokens=True, batch=1, emit=ignore_event)
    for level, encoded in (("video", found.features["pooled"]), ("tokens", found.features["tokens"])):
        called("extract -q", *options, "--features", level, "--out", tmp_path / f"{level}.safetensors")
        extracted = load_file(tmp_path / f"{level}.safetensors")["features"].numpy()
        assert np.array_equal(encoded, extracted.reshape(encoded.shape))
    assert found.samples == samples
    classifier = everest.load_model(runs["finetune"])
    logits = classifier.head(torch.from_numpy(found.features["pooled"])).softmax(dim=-1)
    for row, expected in zip(json_of("predict", *options), logits.tolist(), strict=True):
        for one_class in row["predictions"]:
            assert one_class["probability"] == pytest.approx(expected[one_class["index"]], abs=1e-5)


def test_unreadable_videos_are_skipped_up_to_a_limit(runs: dict[str, Path], clip_files: Path, tmp_path: Path):
    for name in "abcde":
        (tmp_path / f"{name}.mp4").write_text("no video")
    good = [f"{clip_files}/clip{i}.mp4 {i % 2}" for i in range(4)]
    (tmp_path / "one.csv").write_text("\n".join([*good, f"{tmp_path}/a.mp4 0"]))
    (tmp_path / "many.csv").write_text("\n".join([*good, *(f"{tmp_path}/{name}.mp4 0" for name in "abcde")]))
    command = ["-c", runs["pretrain"], "--probes", "knn"]
    result = probed(*command, "--set", f"data.train={tmp_path}/one.csv")
    assert (result["train"], result["skipped"]) == (4, 1)
    message = refused("probe", *command, "--set", f"data.train={tmp_path}/many.csv", code=4)
    assert "5 of 9 videos could not be read, more than data.max_bad=0.01 allows" in message


def test_errors_are_one_line(autoencoder_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "one.csv").write_text(f"{clip_files}/clip0.mp4 0\n{clip_files}/clip1.mp4 0\n")
    for options, code, message in (
        (["--probes", "knn,liner"], 2, "--probes: unknown name 'liner'; did you mean 'linear'?"),
        ([f"--set=data.train={tmp_path}/one.csv"], 4, "data.train: all videos have the same label"),
        (["--set=data.train=gone.csv"], 4, "gone.csv: no such list or folder"),
        (["--set=data.size=36"], 2, "no multiple of the tubelet's 8"),
    ):
        assert message in refused("probe", "-c", autoencoder_run, *options, code=code)


def test_a_head_with_nothing_to_learn_is_named_before_videos_are_encoded(heads_run, clip_files, tmp_path):
    write_list(tmp_path / "train.csv", clip_files, label_noun=(0, 0, 0, 0), label_verb=(0, 1, 0, 1))
    message = refused("probe", "-c", heads_run, f"--set=data.train={tmp_path}/train.csv", code=4)
    assert "data.train: head noun: all videos have the same label" in message
    assert "video 4/4" not in message
    assert json_of("probe -q -c", heads_run, "--probes", "knn, linear")["heads"].keys() == {"verb", "noun"}
    assert "verb knn" in called("probe -q -c", heads_run, "--probes", "knn").stdout


def test_ridge_regression_finds_numbers_that_are_linear_in_the_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 4)).astype(np.float32)
    numbers = 100 + 20 * features[:, 0].astype(np.float64)
    found = linear(features[:60], numbers[:60], features[60:], NUMBER, seed=0)
    assert np.abs(found[:, 0] - numbers[60:]).max() < 1


def test_heads_of_every_task_are_probed(mixed_run: Path):
    result = probed("-c", mixed_run, "--probes", "knn,linear")
    shown = {name: set(head["probes"]["knn"]) for name, head in result["heads"].items()}
    assert shown == {
        "verb": {"top1", "top5", "mean_class_accuracy"},
        "tags": {"map", "micro_f1", "macro_f1"},
        "score": {"mae", "rmse", "r2", "spearman"},
    }
    # Two of four videos have each tag: 1/4 (25/12 + 1/3 (4 - 25/12)).
    assert [result["heads"][name]["chance"] for name in ("verb", "tags")] == [50, 68.0556]
    chance = np.abs(np.subtract(SCORES, np.mean(SCORES))).mean()
    assert result["heads"]["score"]["chance"] == pytest.approx(chance)
    assert "majority" not in result["heads"]["tags"]
