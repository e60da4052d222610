"""The kinds of features that linear candidates learn from: of the pixels of a clip, or of an encoder.

A new kind is a row of `FEATURES`, and a new candidate a row of `LINEAR`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, NamedTuple

import torch

from everest.checkpoints.init import find_init, load_init, read_init
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.data.randomness import Purpose, seed_at
from everest.lists.classes import Classes
from everest.models.classifier import VideoClassifier
from everest.models.clip_spec import ModelSpec
from everest.models.image_classifier import PixelClassifier, PixelSpec
from everest.models.spec import classifier_spec
from everest_workflows.project.adaptation import ADAPT

IMAGES: Final = "linear-images"
FROZEN: Final = "frozen-features"
# The kinds of features of each linear candidate. Simple ones first: of two equally good ones, the earlier is
# chosen.
LINEAR: Final[dict[str, tuple[str, ...]]] = {
    IMAGES: ("images",),
    "images-motion": ("images", "motion"),
    "random-features": ("random",),
    FROZEN: ("frozen",),
    "frozen-motion": ("frozen", "motion"),
    "adapted-features": ("adapted",),
}
SIZE_RATE: Final = "size-rate"  # of frames; compared and never selected


class Starts(NamedTuple):
    """Weights of a project."""

    init: str | None = None  # that it starts from
    adapted: str | None = None  # the run that adapted them to unlabeled videos


def _make_pixel_classifier(
    features: Literal["images", "motion"], recipe: Recipe, classes: Classes, starts: Starts
) -> PixelClassifier:
    data = recipe.data
    size, heads = data.frame_size, classes.heads
    spec = PixelSpec(frames=data.frames, size=size, pixels=data.pixels, heads=heads, features=features)
    return spec.build()


def _make_histograms(recipe: Recipe, classes: Classes, starts: Starts) -> PixelClassifier | None:
    """A linear model of histograms of edges and their motion, of clips of several frames."""
    return _make_pixel_classifier("motion", recipe, classes, starts) if recipe.data.frames > 1 else None


def _make_encoder(
    recipe: Recipe, classes: Classes, starts: Starts, *, kind: Literal["random", "frozen", "adapted"]
) -> VideoClassifier | None:
    """A classifier of the mean and the change of the tokens of an encoder.

    The encoder has the weights that the project starts from, or new ones if it starts from none; or it is the
    adapted one, and sees the tokens that it was adapted to.
    """
    init = starts.adapted if kind == "adapted" else starts.init
    if (kind == "random") != (init is None):
        return None
    spec = classifier_spec(recipe, classes.heads)
    spec = replace(spec, model=replace(spec.model, pooling="mean-change"), drop_path=0.0)
    if kind == "adapted":
        selection = load_recipe(ADAPT).finetune.selection
        spec = replace(spec, model=replace(spec.model, attention="joint"), selection=selection)
    with torch.random.fork_rng(devices=[]):  # it is built on the CPU
        torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
        model = spec.build()
    assert isinstance(model, VideoClassifier)
    if init is not None:
        assert isinstance(model.spec, ModelSpec)
        weights = read_init(find_init(init, output=None, overwrite=False), resumed=None)
        load_init(model, weights.adapt_spec(model.spec), weights, notify=lambda text: None)
    return model


LinearModule = PixelClassifier | VideoClassifier  # has `features`, and a linear `head`


@dataclass(frozen=True)
class FeatureKind:
    """Features that are computed without training."""

    make: Callable[[Recipe, Classes, Starts], LinearModule | None]  # None: the project cannot have it
    description: str  # for a publication; {init} stands for the weights that the project starts from


FEATURES: Final[dict[str, FeatureKind]] = {
    "images": FeatureKind(
        partial(_make_pixel_classifier, "images"),
        "the mean image and the mean change of a clip (16 x 16 pixels each)",
    ),
    "motion": FeatureKind(_make_histograms, "histograms of its edges and their motion"),
    "random": FeatureKind(partial(_make_encoder, kind="random"), "the features of an untrained encoder"),
    "frozen": FeatureKind(partial(_make_encoder, kind="frozen"), "the frozen features of {init}"),
    "adapted": FeatureKind(
        partial(_make_encoder, kind="adapted"), "the features of {init}, adapted to the unlabeled videos"
    ),
}
