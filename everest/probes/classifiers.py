"""Trained classifiers of features: a linear model, and attention over tokens.

All take features of the training videos, their labels and the features of the test videos, and return outputs
(M, C).

N training videos, M test videos, K tokens per video, D width, C outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedGroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from everest.config.heads import MULTI_LABEL, Head
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.plan import cosine_lr
from everest.models.classifier import outputs_of
from everest.probes.neighbors import Floats, LabeledFeatures, Labels

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice of sklearn's C = 1 / weight decay
VIDEOS_PER_HELD_OUT: Final = 5  # our choice: one in five videos of each class selects the strength
_LOGISTIC: Final = LogisticRegression(max_iter=2000)  # of L-BFGS
# By task: the linear model, the values of its setting for each strength, and the score that chooses one.
LINEAR_MODELS: Final[dict[str, tuple[Any, dict[str, Sequence[float]], str]]] = {
    "single-label": (_LOGISTIC, {"model__C": STRENGTHS}, "accuracy"),
    MULTI_LABEL: (OneVsRestClassifier(_LOGISTIC), {"model__estimator__C": STRENGTHS}, "average_precision"),
    "regression": (Ridge(), {"model__alpha": [1 / value for value in STRENGTHS]}, "neg_mean_absolute_error"),
}
FOLDS: Final = 5  # our choice

ATTENTIVE_EPOCHS: Final = 20  # V-JEPA
ATTENTIVE_STEPS: Final = 300  # our choice: a small set gets more epochs
ATTENTIVE_BATCH: Final = 64  # our choice; V-JEPA: 256
ATTENTIVE_LR: Final = 1e-3  # V-JEPA, at the peak
WARMUP: Final = 0.1  # our choice: share of the steps
WEIGHT_DECAY: Final = 0.01  # V-JEPA
LOSSES: Final = {
    "single-label": F.cross_entropy,
    MULTI_LABEL: F.binary_cross_entropy_with_logits,
    "regression": F.smooth_l1_loss,
}


def linear(
    features: Floats,
    labels: Labels,
    test: Floats,
    head: Head,
    *,
    seed: int,
    chosen_on: NDArray[np.bool_] | None = None,
) -> Floats:
    """Fit a linear model of standardized features: logistic regression, or ridge regression of numbers.

    Its strength is the best one on a held-out part of the training videos, the smallest of equal ones: by
    accuracy, mean average precision or mean absolute error. Then it is fitted on all training videos. Where a
    part cannot be held out, or does not leave two classes, the strength is sklearn's default.

    Args:
        seed: of the draw of the held-out part.
        chosen_on: the held-out part, (N,); None: it is drawn.
    """
    strata = labels if head.task == "single-label" else np.zeros(len(labels), dtype=np.int64)
    held = held_out(strata, seed) if chosen_on is None else chosen_on
    estimator, strengths, score = LINEAR_MODELS[head.task]
    model: Any = Pipeline([("scaler", StandardScaler()), ("model", clone(estimator))])
    if _can_choose(labels, held, head):
        model = GridSearchCV(model, strengths, scoring=score, cv=PredefinedSplit(np.where(held, 0, -1)))
    with warnings.catch_warnings():
        # Of the strongest models on few videos, which may not converge, and of classes of no videos.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(features, labels)
    if head.task == "regression":
        return model.predict(test).reshape(-1, 1).astype(np.float32)
    probabilities = model.predict_proba(test)
    if head.task == MULTI_LABEL:  # of a single class, sklearn has its absence, too, in the first column
        return probabilities[:, -head.outputs :].astype(np.float32)
    outputs = np.zeros((len(test), head.outputs), dtype=np.float32)
    outputs[:, model.classes_] = probabilities  # a class may have no training video
    return outputs


def _can_choose(labels: Labels, held: NDArray[np.bool_], head: Head) -> bool:
    """Whether a model can be fitted on the videos that are not held out, and measured on those that are."""
    if held.all() or not held.any():
        return False
    if head.task == MULTI_LABEL:
        return bool(labels[held].any())
    return head.task == "regression" or len(np.unique(labels[~held])) > 1


def held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return (N,): a fifth of each class, at least one video, and none of a class with a single video."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        videos = rng.permutation(np.flatnonzero(labels == label))
        if len(videos) > 1:
            held[videos[: max(len(videos) // VIDEOS_PER_HELD_OUT, 1)]] = True
    return held


def cross_validated(known: LabeledFeatures, num_classes: int, *, seed: int) -> float | None:
    """The accuracy in percent of logistic regression, in up to five folds that divide no source.

    Args:
        seed: of the draw of the folds.
    Returns:
        None if a class has a single source, or the videos for fitting have one class.
    """
    features, labels, sources = known
    folds = min(FOLDS, *(len(np.unique(sources[labels == label])) for label in np.unique(labels)))
    if folds < 2:
        return None
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    head, correct = Head(outputs=num_classes), 0
    for fitted, tested in splitter.split(features, labels, sources):
        if len(np.unique(labels[fitted])) < 2:
            return None
        probabilities = linear(features[fitted], labels[fitted], features[tested], head, seed=seed)
        correct += int((probabilities.argmax(axis=1) == labels[tested]).sum())
    return 100 * correct / len(labels)


def attentive(
    tokens: Floats, labels: Labels, test: Floats, head: Head, *, heads: int, seed: int, device: torch.device
) -> Floats:
    """Train attention with a learned query, and a linear head, on tokens (Bardes et al. 2024).

    Args:
        tokens, test: (N, K, D) and (M, K, D).
        head: of numbers with their mean and std; it names the loss.
        heads: of the attention; the encoder's.
        seed: of the first weights and of the order of the videos.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
        width = tokens.shape[-1]
        pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        model = nn.Sequential(nn.LayerNorm(width), pool, nn.Linear(width, head.outputs)).to(device)
    _train(model, tokens, labels, head, seed=seed, device=device)
    with torch.inference_mode():
        parts = [test[first : first + ATTENTIVE_BATCH] for first in range(0, len(test), ATTENTIVE_BATCH)]
        outputs = [outputs_of(model(_on_device(part, device)), (head,)).cpu() for part in parts]
    return torch.cat(outputs).numpy()


def _train(
    model: nn.Module, tokens: Floats, labels: Labels, head: Head, *, seed: int, device: torch.device
) -> None:
    """Minimize the loss of the head on all training videos."""
    if head.task != "single-label":
        values = labels if head.task == MULTI_LABEL else (labels[:, None] - head.mean) / head.std
        labels = values.astype(np.float32)  # (N, C)
    per_epoch = math.ceil(len(tokens) / ATTENTIVE_BATCH)
    steps = max(ATTENTIVE_EPOCHS, math.ceil(ATTENTIVE_STEPS / per_epoch)) * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = generator_at(seed, Purpose.ORDER, epoch).permutation(len(tokens))
        chosen = order[place * ATTENTIVE_BATCH : (place + 1) * ATTENTIVE_BATCH]
        rate = cosine_lr(step, steps=steps, warmup=int(WARMUP * steps), peak=ATTENTIVE_LR, minimum=0.0)
        optimizer.param_groups[0]["lr"] = rate
        outputs = model(_on_device(tokens[chosen], device))
        LOSSES[head.task](outputs, _on_device(labels[chosen], device)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _on_device(rows: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows)).to(device)  # a copy, because the tokens are memory-mapped
