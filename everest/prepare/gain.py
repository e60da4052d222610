"""What encoding is worth: clips a second of the files before and after, read as pre-training reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Final

from everest.data.dataset import VideoClips
from everest.data.loader import batches, make_loader
from everest.data.samples import Sample
from everest.data.views import PretrainViews

VIDEOS: Final = 16  # of the set, evenly spread
ROUNDS: Final = 3  # after one in which the files are looked at
VIEWS: Final = PretrainViews(  # the clips of most recipes
    frames=16, stride=4, size=(224, 224), flip=True, sampling="dense", views_per_decode=1
)


def measure_gain(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Clips for each second of CPU, of one process.

    Args:
        pairs: paths or URLs of videos before and after.
    Returns:
        `{"before", "after"}`.
    """
    chosen = pairs[:: max(len(pairs) // VIDEOS, 1)][:VIDEOS]
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(1 + ROUNDS):
        for name, paths in zip(seconds, zip(*chosen, strict=True), strict=True):
            seconds[name].append(_seconds(paths))
    return {name: round(len(chosen) / median(times[1:]), 1) for name, times in seconds.items()}


def _seconds(paths: Sequence[str]) -> float:
    samples = [Sample(path=path) for path in paths]
    clips = VideoClips(samples, make_views=VIEWS, seed=0, num_noise=0, decoder="auto", replace_bad=False)
    began = time.process_time()
    for _ in batches(make_loader(clips, [[(0, index)] for index in range(len(paths))], workers=0, timeout=0)):
        pass
    return time.process_time() - began
