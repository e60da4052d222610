"""The clips for training and validating a tokenizer (one chunk per video), and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from everest.config.settings import Recipe, TrainSettings
from everest.data.clip_dataset import Batch, ClipDataset
from everest.data.loader import choose_workers, read_batches
from everest.data.recipe_clips import clip_format, make_dataset, pretrain_key
from everest.data.views import ClipFormat, PretrainViews, ValidationViews
from everest.lists.sample import choose_evenly
from everest.lists.sources import read_source
from everest.system.storage import join_location, parse_location
from everest.tokenizer.spec import tokenizer_settings

MEASURED_BATCH: Final = 8  # heuristic: clips per batch when measuring


def tokenizer_dataset(recipe: Recipe) -> ClipDataset:
    """The videos of pre-training: random chunks, with the stride, crops and flips of pre-training."""
    flip = recipe.data.flip if recipe.pretrain.flip is None else recipe.pretrain.flip
    views = PretrainViews(**vars(chunk_format(recipe)), flip=flip, views_per_decode=1)
    samples = read_source(recipe.data, pretrain_key(recipe.data), labeled=False)
    return make_dataset(recipe, samples, views, training=True)


def chunk_format(recipe: Recipe) -> ClipFormat:
    """Return the clip format of a tokenizer's chunks."""
    clip = clip_format(recipe, "pretrain")
    return replace(clip, frames=tokenizer_settings(recipe).frames, sampling="dense")


def held_out_dataset(recipe: Recipe) -> tuple[str, ClipDataset]:
    """Return the list for validating a tokenizer, and the middle chunk of each of its videos.

    The list is `data.val`, otherwise `data.test` if the file exists, otherwise the training list, so that a
    folder of videos is enough.

    Returns:
        The key of the list in `data`, and the data set.
    """
    data = recipe.data
    key = pretrain_key(data)
    if data.val is not None:
        key = "val"
    elif data.test is not None and join_location(parse_location(data.root), data.test).exists():
        key = "test"
    views = ValidationViews(**vars(chunk_format(recipe)))
    return key, make_dataset(recipe, read_source(data, key, labeled=False), views)


def spaced_clips(dataset: ClipDataset, most: int, *, settings: TrainSettings) -> Iterator[Batch]:
    """Yield batches of at most `most` clips in all, evenly spaced in the list, as drawn in the first epoch.

    Clips are spaced because a list may be sorted by class.
    """
    keys = [(0, index) for index in choose_evenly(range(len(dataset)), most)]
    order = [keys[first : first + MEASURED_BATCH] for first in range(0, len(keys), MEASURED_BATCH)]
    workers = choose_workers(dataset, order, settings.workers)
    yield from read_batches(dataset, order, workers=workers, timeout=settings.data_timeout)


def tokenizer_depends_on(key: str, recipe: Recipe) -> bool:
    """Whether the tokenizer depends on the setting `key`; if not, runs that differ in `key` can share it.

    The tokenizer's clips have their own number of frames, values in [0, 1], and no labels.
    """
    data, section = recipe.data, recipe.pretrain
    unread = {"data.frames", "data.mean", "data.std", "train.ema"}
    unread |= {"data.classes", "data.num_classes", "data.task", "data.heads"}
    replaced = {"train": bool(data.pretrain), "test": data.val is not None, "flip": section.flip is not None}
    unread |= {f"data.{name}" for name, by_another in replaced.items() if by_another}
    names = key.split(".")
    above = {".".join(names[:depth]) for depth in range(1, len(names) + 1)}  # the key and its sections
    read = {"data", "train", "tokenizer", "pretrain.stride", "pretrain.flip"}
    return not above.isdisjoint(read) and above.isdisjoint(unread)
