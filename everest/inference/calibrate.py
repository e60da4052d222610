"""The calibration of a classifier's heads, chosen on validation videos and stored with the weights."""

from __future__ import annotations

from everest.config.heads import MULTI_LABEL, Calibration
from everest.inference.calibration import (
    apply_temperature,
    choose_thresholds,
    expected_calibration_error,
    fit_temperature,
)
from everest.inference.predicted import HeadPredictions, Predictions


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
