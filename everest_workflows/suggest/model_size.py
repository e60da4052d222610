"""Choose the size of a model by the time that one thread of a CPU needs for a clip.

A pass of the network is measured on this machine, in float32 by PyTorch; `everest profile --latency` measures
an exported file. Larger models come first; whether they are more accurate was not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Final

import torch

from everest.config.heads import Head
from everest.data.views import ClipFormat
from everest.lists.sample import Sample, choose_evenly
from everest.models.classifier import Classifier
from everest.models.spec import classifier_spec
from everest.system.compute import NetworkTime, one_thread, time_passes
from everest.video.metadata import clear_video_cache
from everest_workflows.suggest.rules import DEVICE_VALUES, DeviceValues
from everest_workflows.suggest.suggestion import Suggestion

_GPU, _CPU = DEVICE_VALUES["8GB"], DEVICE_VALUES["cpu"]
MODEL_SIZES: Final[tuple[DeviceValues, ...]] = (  # the largest first
    *(DEVICE_VALUES[name] for name in ("80GB", "24GB", "8GB")),
    replace(_GPU, backbone="vit-tiny"),
    replace(_GPU, backbone="vit-tiny", side=_CPU.side, tubelet=_CPU.tubelet, keep=_CPU.keep),
    _CPU,
    replace(_CPU, side=64),
)
NETWORK_FRACTION: Final = 0.75  # of the limit; histograms of motion, which may be added, take the rest
FEWER_FRAMES: Final = (4, 2)  # of a clip; 4 instead of 8 cost 6 and 14 points on two sets (docs/evidence.md)
MAX_READ_VIDEOS: Final = 10  # default: videos whose reading is timed


@torch.inference_mode()
def measure_network_time(model: Classifier, *, limit: float = math.inf) -> NetworkTime:
    """Time a classifier on one thread; see `time_passes`."""
    spec, device = model.spec, model.device
    model.cpu().eval()
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.channels, spec.frames, *spec.size)
    clip = spec.pixels.normalize(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    with one_thread():
        network_time = time_passes(lambda: model(clip), limit=limit)
    model.to(device)
    return network_time


def measure_reading_ms(clip: ClipFormat, samples: Sequence[Sample]) -> float:
    """The median milliseconds, of all threads together, to decode and resize the clip of readable videos."""
    seconds = []
    for sample in choose_evenly(samples, MAX_READ_VIDEOS):
        clear_video_cache()
        started = time.process_time()
        clip.read(sample)
        seconds.append(time.process_time() - started)
    return 1000 * median(seconds)


def fit_latency(
    suggestion: Suggestion, limit: float, *, measure: Callable[..., NetworkTime] = measure_network_time
) -> Suggestion:
    """The suggestion with the largest size that needs at most `limit` ms for a clip, with its network's time.

    No size is larger than the suggested one. If none is fast enough, it is the smallest. Weights to start
    from determine the size; clips of image weights get fewer frames. `measure` is called as
    `measure_network_time`.
    """
    start = suggestion.start
    if start is None:
        sizes = MODEL_SIZES[MODEL_SIZES.index(DEVICE_VALUES[suggestion.device]) :]
        options = [replace(suggestion, size=size) for size in sizes]
    elif start.is_image and not any(text.startswith("data.frames=") for text in suggestion.overrides):
        usual = start.values["data.frames"]
        options = [replace(suggestion, frames=frames) for frames in (usual, *FEWER_FRAMES) if frames <= usual]
    else:
        options = [suggestion]
    for suggestion in options:
        suggestion = replace(suggestion, latency=limit)
        with torch.random.fork_rng(devices=[]):  # new weights
            heads = (Head(outputs=max(1, suggestion.stats.classes)),)
            model = classifier_spec(suggestion.recipe, heads).build()
        assert isinstance(model, Classifier)
        suggestion = replace(suggestion, network_time=(time := measure(model, limit=limit)))
        if time.alone_ms <= NETWORK_FRACTION * limit:
            break
    return suggestion
