"""Targets and losses of each task, and the weights of rare classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from everest.config.heads import Head, named_heads
from everest.data.class_balance import class_weights
from everest.errors import RecipeError
from everest.lists.labels import label_values
from everest.lists.sample import Sample
from everest.models.classifier import outputs_of, soft_targets, supervised_loss

HEADS = (
    *named_heads({"verb": 3, "tags": {"multi-label": 2}}),
    Head(name="speed", task="regression", outputs=1, mean=10.0, std=2.0),
)


def test_labels_become_an_index_yes_or_no_for_each_class_and_a_standardized_number():
    assert label_values((2, (1,), 13.0), HEADS) == [2, 0.0, 1.0, 1.5]
    assert label_values((0, (), 10.0), HEADS) == [0, 0.0, 0.0, 0.0]
    targets = soft_targets(torch.tensor([[2, 0.0, 1.0, 1.5]]), HEADS, smoothing=0.3)
    torch.testing.assert_close(targets, torch.tensor([[0.1, 0.1, 0.8, 0.15, 0.85, 1.5]]))


def test_the_loss_is_the_mean_of_the_losses_of_the_heads():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=generator)
    labels = torch.tensor([[0, 1, 0, 0.2], [1, 0, 0, -1.0], [2, 1, 1, 3.0], [2, 0, 1, 0.0]])
    targets = soft_targets(labels, HEADS, smoothing=0.0)
    loss = supervised_loss(logits, targets, HEADS, [None, None, None])
    expected = [
        F.cross_entropy(logits[:, :3], labels[:, 0].long()),
        F.binary_cross_entropy(logits[:, 3:5].sigmoid(), labels[:, 1:3]),
        F.smooth_l1_loss(logits[:, 5], labels[:, 3]),
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_outputs_are_probabilities_and_numbers_in_their_unit():
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0, -1.0, 1.5]])
    found = outputs_of(logits, HEADS)[0]
    torch.testing.assert_close(found[:3], logits[0, :3].softmax(0))
    torch.testing.assert_close(found[3:5], logits[0, 3:5].sigmoid())
    assert found[5] == 13.0


def samples(labels: list) -> list[Sample]:
    return [Sample(path=str(i), labels=(label,)) for i, label in enumerate(labels)]


def test_balanced_weights_of_classes_are_those_of_scikit_learn():
    labels = [0] * 20 + [2] * 4 + [1]
    (found,) = class_weights(samples(labels), (Head(outputs=4),), "balanced", None)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert found[:3] == pytest.approx(expected)
    assert found[3] == 1  # no video
    assert found[labels].mean() == pytest.approx(1)


def test_balanced_weights_of_several_classes_are_negatives_by_positives_up_to_a_bound():
    labels = [(0, 1)] * 10 + [(0,)] * 30 + [()] * 10 + [(2,)] + [()] * 949
    (found,) = class_weights(samples(labels), (Head(task="multi-label", outputs=4),), "balanced", None)
    assert found.tolist() == pytest.approx([960 / 40, 990 / 10, 100, 1])


def test_weights_by_name_reach_the_classes_of_that_name():
    head = (Head(outputs=3),)
    (found,) = class_weights(samples([0, 1, 2]), head, {"walk": 5.0}, ("run", "walk", "sit"))
    assert found.tolist() == [1, 5, 1]
    with pytest.raises(RecipeError, match="unknown class 'walkk'; did you mean 'walk'"):
        class_weights(samples([0]), head, {"walkk": 5.0}, ("run", "walk", "sit"))
    with pytest.raises(RecipeError, match="weights by name need one head of classes"):
        class_weights([], HEADS, {"walk": 5.0}, None)


def test_a_weighted_loss_is_that_of_torch():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    head, weights = (Head(outputs=3),), torch.tensor([1.0, 4.0, 0.5])
    targets = soft_targets(labels[:, None].float(), head, smoothing=0.0)
    loss = supervised_loss(logits, targets, head, [weights])
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, (each * weights[labels]).mean())
