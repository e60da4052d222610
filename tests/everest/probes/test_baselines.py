from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import called, json_of

from everest.inference.opened_model import OpenedModel
from everest.models.image_classifier import difference_image
from everest.probes.classifiers import LabeledFeatures, compare_sources, measure_precision
from everest.probes.probe import DIFFERENCE_SIDE, make_random_encoder
from everest_cli.evaluate import describe_nearest


def features(*angles: float) -> np.ndarray:
    """Rows (N, 2) in these directions, in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_retrieval_counts_the_class_among_the_nearest_videos_of_other_sources():
    gallery = features(*range(0, 120, 10))  # twelve: the last two are never among the ten nearest of 0
    labels = numbers(*[1] * 5, *[0] * 7)
    query, others = LabeledFeatures(features(0), numbers(1), numbers(9)), numbers(*range(12)) + 20
    found = measure_precision(query, LabeledFeatures(gallery, labels, others))
    assert found == pytest.approx(50)
    own_group = numbers(9, 9, 9, *range(20, 29))  # the three nearest are of the query's group
    found = measure_precision(query, LabeledFeatures(gallery, labels, own_group))
    assert found == pytest.approx(100 * 2 / 9)  # nine are left
    two = LabeledFeatures(features(0, 5), numbers(1, 7), numbers(9, 9))
    alone = measure_precision(two, LabeledFeatures(gallery, labels, others))
    assert alone == pytest.approx(50)  # the second has nothing to find
    nobody = numbers(*[9] * 12)
    assert measure_precision(query, LabeledFeatures(gallery, labels, nobody)) is None


def test_persons_that_look_alike_are_told_from_classes_that_do():
    labels, persons = numbers(0, 1, 0, 1), numbers(0, 0, 1, 1)
    by_person, by_class = features(0, 1, 90, 91), features(0, 90, 1, 91)
    assert compare_sources(LabeledFeatures(by_person, labels, persons)) == (50, 100)
    assert compare_sources(LabeledFeatures(by_class, labels, persons)) == (100, 50)
    labels, persons = numbers(0, 1, 0, 1, 2, 2), numbers(0, 0, 1, 1, 0, 1)
    known = LabeledFeatures(features(0, 1, 90, 91, 2, 92), labels, persons)
    of_class, of_person = compare_sources(known) or (0, 0)
    assert of_person == 100 > of_class
    known = LabeledFeatures(features(0, 90, 1, 91, 180, 181), labels, persons)
    of_class, of_person = compare_sources(known) or (0, 0)
    assert of_class == 100 > of_person
    assert compare_sources(LabeledFeatures(by_class, numbers(0, 1, 2, 3), numbers(0, 0, 1, 1))) is None


def test_a_difference_image_shows_where_something_moves():
    clips = torch.zeros(2, 3, 5, 64, 96, dtype=torch.uint8)
    clips[1, :, 2:, :32, :48] = 100  # once, in the first quarter
    still, moving = difference_image(clips, DIFFERENCE_SIDE)
    assert not still.any()
    image = moving.unflatten(0, (DIFFERENCE_SIDE, DIFFERENCE_SIDE))
    assert image[: DIFFERENCE_SIDE // 2, : DIFFERENCE_SIDE // 2].numpy() == pytest.approx(100 / 4)
    assert image.sum() == image[: DIFFERENCE_SIDE // 2, : DIFFERENCE_SIDE // 2].sum()
    one_frame = torch.full((2, 3, 1, 64, 64), 7, dtype=torch.uint8)
    assert not difference_image(one_frame, DIFFERENCE_SIDE).any()


def test_the_random_encoder_has_the_width_and_other_features(autoencoder_run: Path, clip_files: Path):
    opened = OpenedModel.open(autoencoder_run / "model.safetensors", cpu=True)
    clips = opened.module.clip.read(clip_files / "clip0.mp4")[None]
    first, again = (make_random_encoder(opened)(clips) for _ in range(2))
    own = opened.features(clips)["pooled"]
    assert first.shape == own.shape
    assert torch.equal(first, again)
    assert not torch.allclose(first, own)


def test_probe_names_the_baselines(autoencoder_run: Path):
    result = json_of("probe -q --probes knn,linear", "-c", autoencoder_run)
    assert result["baselines"].keys() == {"random_encoder", "difference_image"}
    for rows in result["baselines"].values():
        assert rows.keys() == {"knn", "linear"}
    assert result["retrieval"].keys() == {"precision@10", "baselines", "by_class", "by_group"}
    assert result["retrieval"]["baselines"].keys() == {"random_encoder", "difference_image"}
    shown = called("probe -q --probes knn", "-c", autoencoder_run).stdout
    for text in ("difference image", "random encoder", "nearest videos of other groups"):
        assert text in shown
    found = {"precision@10": None, "baselines": {}, "by_class": 52.0, "by_group": 35.0}
    (nothing,) = describe_nearest({"": {"retrieval": found}})
    assert nothing.endswith("of other groups: no video has one of its class in another group")


def test_videos_and_groups_that_both_lists_have_are_named(autoencoder_run, clip_files, tmp_path):
    probe = ("probe --probes knn", "-c", autoencoder_run)
    same = called(*probe, "--data", clip_files, "--set", "data.test=train.csv").stderr
    assert "warning: 4 of 4 test videos are also training videos" in same
    assert "clip0.mp4: the accuracies are too high;" in same
    lists = {}
    for name, numbers, groups in (("train", (0, 1), "ab"), ("test", (2, 3), "bc")):
        rows = [f"{clip_files}/clip{n}.mp4,{n % 2},{group}" for n, group in zip(numbers, groups, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,group", *rows]))
        lists[name] = f"--set=data.{name}={tmp_path}/{name}.csv"
    shown = called(*probe, *lists.values()).stderr
    assert "warning: 1 of 2 test videos are also training videos, or of the same groups" in shown


def test_eval_warns_of_the_list_that_chose_the_weights(classifier_run: Path):
    best, newest = (called("eval -c", classifier_run, "--which", name).stderr for name in ("best", "newest"))
    assert "warning: these weights were chosen on train.csv (data.val), so accuracy on it is too high" in best
    assert "were chosen" not in newest
