import json
import math

import numpy as np
import pytest
import torch
from draws import NumpyDraws
from safetensors.torch import load_file

from everest.config.heads import Head
from everest.data.augment import mix
from everest.engine.health import lowest_loss
from everest.models.classifier import soft_targets

CLASSES = 5
SETTINGS = {"num_classes": [CLASSES], "smoothing": 0.1}


def mixed_batch(frames, labels, *, num_classes, smoothing, mixup, cutmix, rng):
    """Mix clips and their smoothed labels (B, heads), as fine-tuning does."""
    heads = tuple(Head(name=str(i), outputs=count) for i, count in enumerate(num_classes))
    targets = soft_targets(labels.float(), heads, smoothing=smoothing)
    return mix(frames, targets, mixup=mixup, cutmix=cutmix, rng=rng)


class GivenDraw(NumpyDraws):
    """A recorded decision; only the box is drawn."""

    def __init__(self, seed, kept, use_cutmix):
        super().__init__(seed)
        self.kept, self.use_cutmix = kept, use_cutmix

    def random(self):
        return 0.0 if self.use_cutmix else 1.0

    def beta(self, a, b):
        return self.kept


def draws_of(case):
    if case["forced_lam_usecutmix"]:
        return GivenDraw(case["numpy_seed"], *case["forced_lam_usecutmix"])
    draws = NumpyDraws(case["numpy_seed"])
    draws.random()  # the official code first draws whether to mix at all, with probability 1
    return draws


@pytest.fixture(scope="module")
def cases(golden):
    recorded = json.loads(golden("augment.json").read_text())["mixup"]
    return {case["tag"]: case for case in recorded if case["mode"] == "batch"}


@pytest.mark.parametrize("tag", ["mixup_fixed", "cutmix_fixed", "batch_seed1", "batch_seed0", "batch_seed2"])
def test_mixed_batch_is_that_of_the_official_code(golden, request, cases, tag):
    more = tag in ("batch_seed0", "batch_seed2")  # not in the repository
    folder = request.getfixturevalue("shared") / "golden" if more else golden("augment.safetensors").parent
    tensors, case = load_file(folder / "augment.safetensors"), cases[tag]
    alphas = {"mixup": case["mixup_alpha"], "cutmix": case["cutmix_alpha"]}
    labels = tensors["mix.label"][:, None]
    frames, targets = mixed_batch(
        tensors["mix.input_BCTHW"], labels, **SETTINGS, **alphas, rng=draws_of(case)
    )
    assert torch.equal(frames, tensors[f"mix.{tag}.out"])
    torch.testing.assert_close(targets, tensors[f"mix.{tag}.target"], atol=1e-6, rtol=0)


def test_middle_clip_of_an_odd_batch_is_mixed_with_itself_and_without_mixing_labels_are_smoothed():
    frames, labels = torch.rand(3, 3, 2, 8, 8), torch.tensor([[0], [1], [2]])
    rng, smoothed = np.random.default_rng(0), torch.tensor([0.02, 0.92, 0.02, 0.02, 0.02])
    mixed, targets = mixed_batch(frames, labels, **SETTINGS, mixup=0.8, cutmix=0.0, rng=rng)
    torch.testing.assert_close(mixed[1], frames[1])
    torch.testing.assert_close(targets[1], smoothed)
    mixed, targets = mixed_batch(frames, labels, **SETTINGS, mixup=0.0, cutmix=0.0, rng=rng)
    assert mixed is frames
    torch.testing.assert_close(targets[1], smoothed)


def test_cutmix_cuts_the_same_rows_and_columns_of_every_frame():
    frames = torch.stack([torch.zeros(3, 4, 16, 16), torch.ones(3, 4, 16, 16)])
    options = {"num_classes": [2], "smoothing": 0.0, "mixup": 0.0, "cutmix": 1.0}
    labels = torch.tensor([[0], [1]])
    mixed, targets = mixed_batch(frames, labels, **options, rng=np.random.default_rng(3))
    assert (mixed[0] == mixed[0, :1, :1]).all()
    assert 0 < mixed[0].mean() < 1
    torch.testing.assert_close(mixed[0].mean(), targets[0, 1])


def test_several_heads_are_mixed_alike_each_with_its_own_sum():
    frames, labels = torch.rand(4, 3, 2, 8, 8), torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])
    options = {"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}
    both, targets = mixed_batch(frames, labels, num_classes=[3, 4], **options, rng=np.random.default_rng(5))
    for head, part in enumerate(targets.split([3, 4], dim=-1)):
        torch.testing.assert_close(part.sum(dim=-1), torch.ones(4))
        rng, own = np.random.default_rng(5), labels[:, head : head + 1]
        alone, expected = mixed_batch(frames, own, num_classes=[3 + head], **options, rng=rng)
        assert torch.equal(both, alone)
        assert torch.equal(part, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_lowest_loss_is_the_mean_entropy_of_the_targets(mixup, cutmix, smoothing):
    rng, entropies = np.random.default_rng(0), []
    for _ in range(2000 if mixup or cutmix else 1):
        labels, frames = torch.from_numpy(rng.integers(CLASSES, size=(8, 1))), torch.zeros(8, 1, 1, 16, 16)
        settings = {"smoothing": smoothing, "mixup": mixup, "cutmix": cutmix}
        _, targets = mixed_batch(frames, labels, num_classes=[CLASSES], **settings, rng=rng)
        entropies.append(float(torch.special.entr(targets).sum(1).mean()))
    expected = lowest_loss(CLASSES, smoothing=smoothing, mixup=mixup, cutmix=cutmix)
    assert np.mean(entropies) == pytest.approx(expected, abs=0.04)
    assert expected < 0.7 * math.log(CLASSES)
