"""The clips that each stage of a recipe reads."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Final

import numpy as np
import torch

from everest.config.heads import Heads, best_metric
from everest.config.settings import DataSettings, Recipe
from everest.config.values import StageName
from everest.data.class_balance import sampling_odds
from everest.data.clip_dataset import ClipDataset
from everest.data.crops import largest_region
from everest.data.footage import frame_span, read_footage
from everest.data.views import (
    ClipFormat,
    EvalViews,
    FinetuneViews,
    PretrainViews,
    StageViews,
    ValidationViews,
)
from everest.errors import DataError, RecipeError
from everest.lists.classes import Classes
from everest.lists.labels import class_indices
from everest.lists.reading import SampleList
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import read_source, unused_validation_notice
from everest.methods.grid import NoiseLayout, TokenGrid
from everest.system.storage import Location, RemotePath
from everest.system.text import plural
from everest.video.metadata import keep_metadata_in_cache
from everest.video.reader import video_info
from everest.video.source import ShardMember
from everest.video.stream import VideoError

CLASS_METRICS: Final = {"map": "mean average precision", "macro_f1": "macro F1"}  # need a video with a class
SECONDS_PER_CLIP: Final = 10.0  # seconds per clip for clips_per_video: auto; the length of Kinetics' videos
MAX_EXAMINED: Final = 64  # heuristic: number of videos whose length is read before a run
EXAMINATION_SECONDS: Final = 3.0  # heuristic: time limit for reading them; some formats must be decoded
SHORT_FRACTION: Final = 0.05  # heuristic: fraction of videos that may be too short for the stride that fits
MAX_VIEWS: Final = 512  # heuristic: views of a video; 1.2 GB for clips of 16 frames and 224 pixels


def fingerprint(samples: Sequence[Sample], root: Location, class_names: Sequence[str] | None) -> str:
    """A hash that identifies a set of samples: paths below `root`, segments, labels, class names."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    below = f"{root.absolute()}{os.sep}"
    for sample in samples:
        row = (sample.video_id.removeprefix(below), sample.labels)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def pretrain_dataset(recipe: Recipe, noise: NoiseLayout | None = None) -> ClipDataset:
    """Unlabeled clips of `data.pretrain`, or of `data.train` if that is not set.

    Args:
        noise: of the model's spec; None: without frame selection and the camera task.
    """
    data, section = recipe.data, recipe.pretrain
    noise = noise or NoiseLayout.of(clip_grid(recipe))
    clip = replace(clip_format(recipe, "pretrain"), frames=noise.candidates.t * recipe.model.tubelet[0])
    views = PretrainViews(
        **vars(clip),
        flip=data.flip if section.flip is None else section.flip,
        views_per_decode=section.views_per_decode,
        are_compared=section.one_micro_batch,
        crop_area=section.views.crop_area if section.objective == "views" else None,
    )
    samples = read_source(data, pretrain_key(data), labeled=False)
    return make_dataset(recipe, samples, views, num_noise=noise.total, training=True)


def pretrain_key(data: DataSettings) -> str:
    """The key of the data section that names the videos for pre-training."""
    return "pretrain" if data.pretrain else "train"


def finetune_dataset(recipe: Recipe) -> tuple[ClipDataset, Classes]:
    """The labeled clips of `data.train`, and their classes."""
    from everest.data.augment import RandAugment  # imported here: timm takes a second to import

    data, section = recipe.data, recipe.finetune
    settings = section.rand_augment
    views = FinetuneViews(
        **vars(clip_format(recipe, "finetune")),
        flip=data.flip,
        crop_area=section.crop_area,
        rand_augment=settings
        and RandAugment(magnitude=settings.magnitude, std=settings.std, ops=settings.ops),
        erasing=section.erasing,
    )
    samples = read_source(data, "train", labeled=True)
    classes = Classes.of(samples, data)
    dataset = make_dataset(
        recipe,
        samples,
        views,
        heads=classes.heads,
        num_noise=clip_grid(recipe).num_tokens,
        training=True,
        notices=[unused_validation_notice(data)],
    )
    if section.sampler == "shuffle":
        return dataset, classes
    first_labels = [sample.labels[0] for sample in dataset.samples]  # only the first head is balanced
    return replace(dataset, sampling_odds=sampling_odds(first_labels, section.sampler)), classes


def labeled_samples(recipe: Recipe) -> tuple[Sequence[Sample], Sequence[Sample], Classes]:
    """The labeled samples of `data.train` and of `data.test`, and the classes."""
    train = read_source(recipe.data, "train", labeled=True)
    classes = Classes.of(train, recipe.data)
    return train.samples, read_source(recipe.data, "test", labeled=True, classes=classes).samples, classes


def validation_dataset(recipe: Recipe, classes: Classes) -> ClipDataset | None:
    """The center view of each video of `data.val`, if set; DataError if the metric needs classes."""
    data, section = recipe.data, recipe.finetune
    if data.val is None:
        return None
    samples = read_source(data, "val", labeled=True, classes=classes)
    metric = best_metric(classes.heads, section.best, classes.names)
    has_classes = any(class_indices(sample.labels[0]) for sample in samples.samples)
    if metric in CLASS_METRICS and not has_classes:
        raise DataError(
            f"data.val: no video has a class, so its {CLASS_METRICS[metric]} cannot select the best weights; "
            "add videos of classes, or set finetune.best=loss"
        )
    return make_dataset(recipe, samples, center_views(recipe), heads=classes.heads)


def center_views(recipe: Recipe) -> ValidationViews:
    """The center view of a video, as the labeled stages sample its frames."""
    return ValidationViews(**vars(clip_format(recipe, "finetune")))


def evaluation_dataset(recipe: Recipe, classes: Classes) -> ClipDataset:
    """The evaluation views of each video of `data.test`."""
    samples = read_source(recipe.data, "test", labeled=True, classes=classes)
    views = evaluation_views(recipe)
    return make_dataset(recipe, samples, views, heads=classes.heads)


def evaluation_views(recipe: Recipe) -> EvalViews:
    """The `eval.clips` x `eval.crops` views of a video; RecipeError for more than MAX_VIEWS."""
    if recipe.eval.clips * recipe.eval.crops > MAX_VIEWS:
        raise RecipeError(
            f"eval: {recipe.eval.clips} clips x {recipe.eval.crops} crops of a video are in memory at once; "
            f"at most {MAX_VIEWS}"
        )
    clip = clip_format(recipe, "finetune")
    return EvalViews(**vars(clip), clips=recipe.eval.clips, crops=recipe.eval.crops)


def clip_format(recipe: Recipe, stage: StageName) -> ClipFormat:
    """The format of the clips of a stage."""
    data, section = recipe.data, getattr(recipe, stage)
    return ClipFormat(
        frames=data.frames,
        stride=section.stride,
        size=data.frame_size,
        sampling=section.sampling,
        fps=data.fps,
        mean=data.pixels.mean,
        std=data.pixels.std,
    )


def clip_grid(recipe: Recipe) -> TokenGrid:
    """The token grid of a clip."""
    data = recipe.data
    return TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)


def make_dataset(
    recipe: Recipe,
    samples: SampleList,
    views: StageViews,
    *,
    heads: Heads = (),
    num_noise: int = 0,
    training: bool = False,
    notices: Sequence[str | None] = (),
) -> ClipDataset:
    """Make the data set of samples. The `notices` follow the notices about the list.

    In `training`, each sample gives as many clips in an epoch as `data.clips_per_video` states, and another
    sample replaces an unreadable one.
    """
    data = recipe.data
    # Called here, because every stage and probe makes its clips before it opens a video.
    keep_metadata_in_cache()
    distinct_samples = list({sample.video_id: sample for sample in samples.samples}.values())
    epoch_samples = samples.samples
    if training and data.clips_per_video != 1:
        # Choices about a sample follow from its place in the list: each repetition shows another window.
        setting = data.clips_per_video
        counts = [num_clips(sample) if setting == "auto" else setting for sample in epoch_samples]
        epoch_samples = tuple(chain.from_iterable(map(repeat, epoch_samples, counts)))
        total = f"{plural(len(distinct_samples), 'video')}, {len(epoch_samples)} clips an epoch"
        notices = (*notices, f"data.clips_per_video: {total}")
    return ClipDataset(
        epoch_samples,
        views=views,
        seed=recipe.train.seed,
        num_noise=num_noise,
        decoder=data.decoder,
        replace_bad=training,
        heads=heads,
        notices=(*samples.notices, *filter(None, notices)),
    )


def apply_resize_setting(dataset: ClipDataset, resize: str, device: torch.device) -> ClipDataset:
    """The same training clips, resized where `data.resize` says; with cached tokens, in the workers."""
    views = dataset.views
    on_device = resize == "device" or (resize == "auto" and device.type == "cuda")
    if not on_device or dataset.tokens is not None or not isinstance(views, PretrainViews | FinetuneViews):
        return dataset
    return replace(dataset, views=replace(views, region_size=largest_region(views.size)))


def num_clips(sample: Sample) -> int:
    """Clips of a sample per epoch: one per 10 seconds; one if it is unreadable or has no frame rate."""
    try:
        if sample.start is not None and sample.end is not None:
            seconds = sample.end - sample.start
        else:
            seconds = frame_span(sample)[1] / (video_info(sample.video).fps or float("inf"))
    except VideoError:  # reported when the video is read
        return 1
    return max(round(seconds / SECONDS_PER_CLIP), 1)


def examine_lengths(dataset: ClipDataset) -> str | None:
    """Read the lengths of up to 64 local videos; return a notice if most are shorter than a clip, else None.

    Raises:
        DataError: none of them can be read.
    """
    views = dataset.views
    stride = views.stride if views.sampling == "dense" else 1  # other samplings span any video
    lengths: list[int] = []
    errors: list[VideoError] = []
    deadline = time.monotonic() + EXAMINATION_SECONDS
    order = np.random.default_rng(0).permutation(len(dataset))
    examined_samples = [dataset.samples[index] for index in order[:MAX_EXAMINED]]
    for sample in examined_samples:
        video = sample.video
        if isinstance(video.shard if isinstance(video, ShardMember) else video, RemotePath):
            continue
        try:
            lengths.append(read_footage(sample, views.fps).num_frames)
        except VideoError as error:
            errors.append(error)  # if other videos can be read, training names the unreadable ones
        if time.monotonic() > deadline:
            break
    noun = ListSize.of(dataset.samples).noun
    if errors and len(errors) == len(examined_samples):
        first = f"{errors[0].path}: {errors[0].reason}"
        raise DataError(f"none of the {len(errors)} {noun}s examined can be read, first {first}")
    num_short = sum(length < views.frames * stride for length in lengths)
    if 2 * num_short <= len(lengths):  # a stride should fit the median video
        return None
    rate = "" if views.fps is None else f" at {views.fps:g} frames per second"
    fitting = int(np.quantile(lengths, SHORT_FRACTION)) // views.frames
    fix = f"; a stride of {fitting} fits {1 - SHORT_FRACTION:.0%} of them" if fitting else ""
    return (
        f"{num_short} of {len(lengths)} {noun}s ({num_short / len(lengths):.0%}) are shorter than a clip of "
        f"{views.frames} frames at stride {stride}{rate}: frames are repeated{fix}"
    )
