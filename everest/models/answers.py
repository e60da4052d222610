"""From the logits of a classifier's heads to what they answer, and the losses that train them.

B clips, C outputs of all heads together, L values of a label (everest.lists.labels.label_values).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from everest.config.heads import MULTI_LABEL, Head, Heads


def answers(logits: Tensor, heads: Heads) -> Tensor:
    """Convert logits (..., C) to float32 answers: probabilities, or numbers in their unit.

    The probabilities of a single-label head sum to 1; each probability of a multi-label head is from 0 to 1.
    """
    parts = logits.float().split([head.outputs for head in heads], dim=-1)
    return torch.cat([_answer(part, head) for part, head in zip(parts, heads, strict=True)], dim=-1)


def _answer(logits: Tensor, head: Head) -> Tensor:
    if head.task == "regression":
        return logits * head.std + head.mean
    return logits.sigmoid() if head.task == MULTI_LABEL else logits.softmax(dim=-1)


def soft_targets(labels: Tensor, heads: Heads, *, smoothing: float) -> Tensor:
    """Convert labels (B, L) to targets (B, C), which may be mixed.

    Args:
        smoothing: fraction of the probability that is spread over all classes of a single-label head, and
            over yes and no for each class of a multi-label head. Numbers have none.
    """
    parts = labels.split([head.label_width for head in heads], dim=-1)
    targets = []
    for part, head in zip(parts, heads, strict=True):
        if head.task == "regression":
            targets.append(part)  # (B, 1)
        elif head.task == MULTI_LABEL:
            targets.append(part * (1 - smoothing) + smoothing / 2)  # (B, classes)
        else:
            one_hot = F.one_hot(part[:, 0].long(), head.outputs)  # (B, classes)
            targets.append(one_hot * (1 - smoothing) + smoothing / head.outputs)
    return torch.cat(targets, dim=-1)


def supervised_loss(
    logits: Tensor, targets: Tensor, heads: Heads, class_weights: Sequence[Tensor | None]
) -> Tensor:
    """The mean over the heads, so that the learning rate need not follow their number (ours).

    A single-label head has the cross-entropy with soft targets, a multi-label head the binary cross-entropy
    of each class, a number the smooth L1 loss of the standardized values.

    Args:
        logits, targets: (B, C) float32.
        class_weights: of each head, (classes,); None: all classes count the same. The weight of a multi-label
            class is that of its positive videos.
    """
    sizes = [head.outputs for head in heads]
    parts = zip(logits.split(sizes, -1), targets.split(sizes, -1), heads, class_weights, strict=True)
    losses = [_loss(*part) for part in parts]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def _loss(logits: Tensor, targets: Tensor, head: Head, weights: Tensor | None) -> Tensor:
    if head.task == "regression":
        return F.smooth_l1_loss(logits, targets)
    if head.task == MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    return F.cross_entropy(logits, targets, weight=weights)
