"""The clips of the probes of a pre-training run, the same ones at every probe.

A probe encodes the center of each video. The held-out loss uses clips and masks as training draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from everest.config.settings import Recipe
from everest.data.dataset import VideoClips
from everest.data.stages import center_views, clips_of, unlabeled_clips
from everest.data.views import PretrainViews
from everest.lists.classes import Classes
from everest.lists.reading import SampleList
from everest.lists.stage import read_stage

MOST_VIDEOS: Final = 256  # our choice: without labels, RankMe of more videos is hardly larger
MOST_HELD_OUT: Final = 64  # our choice: of data.val, whose loss is measured

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeClips:
    """The videos of the probes of a run."""

    features: VideoClips  # a center clip of each video that is encoded
    classes: Classes | None  # of these videos; None: they have no labels
    held_out: VideoClips | None  # None without data.val


def probe_clips(recipe: Recipe, training: VideoClips) -> ProbeClips:
    """The clips of `pretrain.probe.list`, else of data.val, else of the videos for training."""
    views, settings = training.make_views, recipe.pretrain.probe
    assert isinstance(views, PretrainViews)
    held_out = None
    if recipe.data.val is not None:
        one = views if views.compared else replace(views, views_per_decode=1)
        held_out = unlabeled_clips(recipe, "val", one, replace_bad=False, num_noise=training.num_noise)
    if settings.list is not None:
        data = replace(recipe.data, train=settings.list)
        listed = read_stage(data, "train", labeled=True)
        classes, samples = Classes.of(listed, data), listed.samples
    else:
        classes = None
        samples = spaced(list(dict.fromkeys((held_out or training).samples)), MOST_VIDEOS)
    if held_out is not None:
        held_out = replace(held_out, samples=spaced(held_out.samples, MOST_HELD_OUT))
    chosen = SampleList(samples=tuple(samples), class_names=None)
    centers = clips_of(recipe, chosen, center_views(recipe), replace_bad=False)
    return ProbeClips(features=centers, classes=classes, held_out=held_out)


def spaced(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most `most` items at equal distances, in their order."""
    positions = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return tuple(items[position] for position in positions)
