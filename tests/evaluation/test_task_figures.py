from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everest.evaluation.plots import draw_precision_recall, draw_reliability, draw_scatter
from everest.metrics.calibration import ClassTask, apply_temperature, expected_calibration_error


def predictions(task: ClassTask) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Probabilities of 200 videos and 5 classes, and their labels."""
    rng = np.random.default_rng(0)
    if task == "multi-label":
        return rng.random((200, 5)), rng.random((200, 5)) < 0.3
    return rng.dirichlet(np.ones(5) / 3, size=200), rng.integers(5, size=200)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that has something on it and is white all around."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert pixels[[0, -1]].min() == pixels[:, [0, -1]].min() == 255
    assert pixels.min() < 50
    return pixels.shape[1], pixels.shape[0]


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_a_reliability_diagram_compares_with_a_temperature(tmp_path: Path, task: ClassTask):
    probabilities, labels = predictions(task)
    _, before = expected_calibration_error(probabilities, labels)
    _, after = expected_calibration_error(apply_temperature(probabilities, 3, task), labels)
    draw_reliability(tmp_path / "one.png", before, None)
    draw_reliability(tmp_path / "two.png", before, after)
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        width, height = size_of(path)
        assert 600 < height < width < 900
    _, single = expected_calibration_error(np.array([[0.2, 0.8]]), np.array([1]))  # of one video
    draw_reliability(tmp_path / "a.png", single, single)
    size_of(tmp_path / "a.png")


@pytest.mark.parametrize("count", [1, 10, 157])
def test_precision_and_recall_of_any_number_of_classes_fit_the_figure(tmp_path: Path, count: int):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((60, count)), rng.random((60, count)) < 0.3
    labels[0] = True
    names = [f"_{i} $putting something similar to other things\udce9 {'x' * i}" for i in range(count)]
    classes = {name: (labels[:, i], scores[:, i]) for i, name in enumerate(names)}
    draw_precision_recall(tmp_path / "curves.png", classes)
    width, height = size_of(tmp_path / "curves.png")
    assert 1000 < width < 1200
    assert 600 < height < 750


@pytest.mark.parametrize("videos", [1, 3, 500])
def test_a_scatter_plot_has_equal_axes_for_any_number_of_videos(tmp_path: Path, videos: int):
    rng = np.random.default_rng(0)
    truth = rng.gamma(3, 20, size=videos).astype(np.float32)
    draw_scatter(tmp_path / "s.png", truth, truth + 9 * rng.normal(size=videos))
    width, height = size_of(tmp_path / "s.png")
    assert 650 < min(width, height) <= max(width, height) < 800
    draw_scatter(tmp_path / "s.png", np.ones(4), np.array([1e6, 2, 3, -4.0]))  # without R2
    assert size_of(tmp_path / "s.png")[0] < 900
