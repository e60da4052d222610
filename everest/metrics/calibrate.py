"""The calibration of a classifier's heads: chosen on validation videos, stored with the weights, applied."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from everest.config.heads import MULTI_LABEL, Calibration, Head, Heads
from everest.errors import CheckpointError
from everest.metrics.calibration import (
    apply_temperature,
    choose_thresholds,
    expected_calibration_error,
    fit_temperature,
)
from everest.metrics.predicted import HeadPredictions, Predictions


def calibrate(predictions: Predictions) -> dict[str, Calibration]:
    """The temperature of each head of classes, and the thresholds of multi-label classes, by its name.

    The thresholds are of the probabilities before the temperature, which does not change their order.
    """
    chosen = {}
    for name, head in predictions.by_head().items():
        if head.head.task == "regression":
            continue
        thresholds = ()
        if head.head.task == MULTI_LABEL:
            thresholds = tuple(choose_thresholds(head.means, head.labels).tolist())
        temperature = fit_temperature(head.means, head.labels, head.head.task)
        chosen[name] = Calibration(temperature=temperature, thresholds=thresholds)
    return chosen


def calibration_errors(head: HeadPredictions) -> dict[str, float]:
    """`ece` in percent; with a temperature in the weights also `ece_calibrated` and `temperature`."""
    assert head.head.task != "regression"
    result = {"ece": round(100 * expected_calibration_error(head.means, head.labels)[0], 4)}
    calibration = head.head.calibration
    if calibration is None:
        return result
    after = apply_temperature(head.means, calibration.temperature, head.head.task)
    error, _ = expected_calibration_error(after, head.labels)
    return result | {
        "ece_calibrated": round(100 * error, 4),
        "temperature": round(calibration.temperature, 4),
    }


def calibrate_answers(means: Tensor, heads: Heads) -> Tensor:
    """Apply the temperature of each head to mean answers (…, outputs); numbers stay as they are."""
    parts = means.split([head.outputs for head in heads], dim=-1)
    return torch.cat([_calibrated(part, head) for part, head in zip(parts, heads, strict=True)], dim=-1)


def _calibrated(means: Tensor, head: Head) -> Tensor:
    if head.task == "regression" or head.calibration is None:
        return means
    flat = means.flatten(0, -2).numpy() if means.dim() > 1 else means[None].numpy()  # (N, outputs)
    scaled = apply_temperature(flat, head.calibration.temperature, head.task)
    return torch.from_numpy(scaled).to(means.dtype).view_as(means)


def calibrated_heads(heads: Heads, *, source: str) -> Heads:
    """The heads with the thresholds of calibrated probabilities, which predict the same classes.

    Raises:
        CheckpointError: none of the heads has a temperature.
    """
    if all(head.calibration is None for head in heads):
        raise CheckpointError(
            f"{source}: has no temperature for --calibrated; fine-tune with data.val, which chooses one for "
            "the best weights"
        )
    return tuple(_with_calibrated_thresholds(head) for head in heads)


def _with_calibrated_thresholds(head: Head) -> Head:
    if head.calibration is None or head.task != MULTI_LABEL:
        return head
    thresholds = np.array([head.thresholds], dtype=np.float64)
    scaled = apply_temperature(thresholds, head.calibration.temperature, MULTI_LABEL)[0]
    return replace(head, calibration=replace(head.calibration, thresholds=tuple(scaled.tolist())))
