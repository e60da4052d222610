"""From a recipe's data section to the clips of each stage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from everest.config.settings import DataSettings, Recipe
from everest.data.augment import RandAugment
from everest.data.cache import open_cache
from everest.data.classes import Classes
from everest.data.dataset import VideoClips
from everest.data.list_text import read_lines
from everest.data.samples import Sample, SampleList, read_samples
from everest.data.views import (
    EvalViews,
    FinetuneViews,
    MakeViews,
    PretrainViews,
    ValidationViews,
    segment_bytes,
)
from everest.errors import DataError, RecipeError
from everest.methods.frame_selection import num_candidates
from everest.methods.grid import TokenGrid
from everest.methods.masks import Tube
from everest.system.storage import Location, join_location, parse_location
from everest.video.folders import as_data_error

MOST_VIEWS: Final = 512  # ours: 1.2 GB of bytes for clips of 16 frames and 224 pixels


def fingerprint(samples: Sequence[Sample], root: Location, class_names: Sequence[str] | None) -> str:
    """Tells sets of samples apart: paths below `root`, segments, labels and what the labels are called."""
    told = hashlib.sha256(json.dumps(class_names).encode())
    below = f"{root.absolute()}{os.sep}"
    for sample in samples:
        row = (sample.video_id.removeprefix(below), sample.labels)
        told.update(json.dumps(row).encode())
    return told.hexdigest()[:16]


def pretrain_clips(recipe: Recipe, *, replace_bad: bool = True) -> VideoClips:
    """The unlabelled videos of `data.pretrain`, or of `data.train` where that is not given."""
    data, stage = recipe.data, recipe.pretrain
    grid = clip_grid(recipe)
    offered = replace(grid, t=num_candidates(grid.t, stage.frame_selection.alpha))
    views = PretrainViews(
        frames=offered.t * recipe.model.tubelet[0],
        stride=stage.stride,
        size=data.frame_size,
        flip=data.flip if stage.flip is None else stage.flip,
        sampling=stage.sampling,
        views_per_decode=stage.views_per_decode,
    )
    draws = offered.t if offered != grid else 0  # one number a slice that can be drawn
    return unlabelled_clips(
        recipe, pretrain_key(data), views, num_noise=offered.num_tokens + draws, replace_bad=replace_bad
    )


def pretrain_key(data: DataSettings) -> str:
    """Which list says what is trained on without labels."""
    return "pretrain" if data.pretrain else "train"


def unlabelled_clips(
    recipe: Recipe, key: str, views: MakeViews, *, replace_bad: bool, num_noise: int = 0
) -> VideoClips:
    """The videos of `data.KEY`, whose labels are not read."""
    root, source = _source(recipe.data, key)
    samples = read_samples(source, root=root, classes=None, num_classes=None, heads=None, labelled=False)
    return _clips(recipe, samples, views, num_noise=num_noise, replace_bad=replace_bad)


def finetune_clips(recipe: Recipe) -> tuple[VideoClips, Classes]:
    """The labelled videos of `data.train`."""
    data, stage = recipe.data, recipe.finetune
    settings = stage.rand_augment
    views = FinetuneViews(
        frames=data.frames,
        stride=stage.stride,
        size=data.frame_size,
        flip=data.flip,
        sampling=stage.sampling,
        crop_area=stage.crop_area,
        rand_augment=settings
        and RandAugment(magnitude=settings.magnitude, std=settings.std, ops=settings.ops),
        erasing=stage.erasing,
    )
    samples = _training_samples(data)
    num_noise = clip_grid(recipe).num_tokens if isinstance(stage.selection, Tube) else 0
    clips = _clips(recipe, samples, views, num_noise=num_noise, replace_bad=True)
    return clips, Classes.of(samples, data)


def labelled_samples(recipe: Recipe) -> tuple[Sequence[Sample], Sequence[Sample], Classes]:
    """The labelled videos of `data.train` and of `data.test`."""
    train = _training_samples(recipe.data)
    classes = Classes.of(train, recipe.data)
    return train.samples, _labelled_alike(recipe.data, "test", classes).samples, classes


def validation_clips(recipe: Recipe, classes: Classes) -> VideoClips | None:
    """One centre view of each video of `data.val`; None without a list."""
    data, stage = recipe.data, recipe.finetune
    if data.val is None:
        return None
    views = ValidationViews(
        frames=data.frames, stride=stage.stride, size=data.frame_size, sampling=stage.sampling
    )
    samples = _labelled_alike(data, "val", classes)
    return _clips(recipe, samples, views, replace_bad=False)


def evaluation_clips(recipe: Recipe, classes: Classes) -> VideoClips:
    """The test views of each video of `data.test`."""
    samples = _labelled_alike(recipe.data, "test", classes)
    views = evaluation_views(recipe)
    return _clips(recipe, samples, views, replace_bad=False, cached=False)  # each video is seen once


def evaluation_views(recipe: Recipe) -> EvalViews:
    """`eval.clips` x `eval.crops` views of a video.

    Raises:
        RecipeError: more than fit into the memory of any machine.
    """
    data, stage = recipe.data, recipe.finetune
    if recipe.eval.clips * recipe.eval.crops > MOST_VIEWS:
        raise RecipeError(
            f"eval: {recipe.eval.clips} clips x {recipe.eval.crops} crops of a video are in memory at once; "
            f"at most {MOST_VIEWS}"
        )
    return EvalViews(
        frames=data.frames,
        stride=stage.stride,
        size=data.frame_size,
        clips=recipe.eval.clips,
        crops=recipe.eval.crops,
        sampling=stage.sampling,
    )


def _training_samples(data: DataSettings) -> SampleList:
    return _labelled(
        data, "train", num_classes=data.num_classes, names=_named_classes(data), heads=data.heads
    )


def _labelled(
    data: DataSettings,
    key: str,
    *,
    num_classes: int | None,
    names: tuple[str, ...] | None,
    heads: Mapping[str, int] | None,
    names_classes: bool = True,
) -> SampleList:
    root, source = _source(data, key)
    return read_samples(
        source,
        root=root,
        classes=names,
        num_classes=num_classes,
        heads=heads,
        labelled=True,
        names_classes=names_classes,
    )


def _labelled_alike(data: DataSettings, key: str, classes: Classes) -> SampleList:
    """The samples of `data.KEY`, their labels read as those of the training set."""
    names = classes.names or _named_classes(data)
    if classes.names and _classes_file(data) and _named_classes(data) != names:
        raise DataError(
            f"data.classes: '{data.classes}' has other names, or another order, than the classes that the "
            f"model was trained on (first {classes.names[0]}); set data.classes to null"
        )
    return _labelled(
        data, key, num_classes=classes.count, names=names, heads=classes.heads, names_classes=False
    )


def _source(data: DataSettings, key: str) -> tuple[Location, Location]:
    """`data.root`, and the list or folder that `data.KEY` names below it."""
    source = getattr(data, key)
    if source is None:
        raise RecipeError(f"data.{key}: not set; name a list or a folder of videos")
    root = parse_location(data.root)
    if not root.is_dir():
        raise DataError(f"data.root: no folder '{root}'; set it by --data DIR")
    return root, join_location(root, source)


def _named_classes(data: DataSettings) -> tuple[str, ...] | None:
    """The names in the file `data.classes`; None where it is not set."""
    if data.classes is None:
        return None
    path = _classes_file(data)
    if path is None:
        raise DataError(f"data.classes: no file '{join_location(parse_location(data.root), data.classes)}'")
    first_line: dict[str, int] = {}
    for number, line in read_lines(path):
        name = line.strip()
        if name in first_line:
            raise DataError(f"{path}:{number}: class '{name}' stands in line {first_line[name]} already")
        first_line[name] = number
    if not first_line:
        raise DataError(f"{path}: no class names; data.classes needs a file with one in each line")
    return tuple(first_line)


def _classes_file(data: DataSettings) -> Location | None:
    """The file `data.classes`, if it is set and there: a test set elsewhere need not have it."""
    if data.classes is None:
        return None
    path = join_location(parse_location(data.root), data.classes)
    with as_data_error(path):
        return path if path.is_file() else None


def clip_grid(recipe: Recipe) -> TokenGrid:
    """The tokens of a clip."""
    data = recipe.data
    return TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)


def _clips(
    recipe: Recipe,
    samples: SampleList,
    views: MakeViews,
    *,
    num_noise: int = 0,
    replace_bad: bool,
    cached: bool = True,
) -> VideoClips:
    data = recipe.data
    kind = data.cache if cached else "none"
    once = {sample.video_id: sample for sample in samples.samples}
    return VideoClips(
        samples.samples,
        make_views=views,
        seed=recipe.train.seed,
        num_noise=num_noise,
        decoder=data.decoder,
        replace_bad=replace_bad,
        cache=open_cache(kind, list(once.values()), segment_bytes),
    )
