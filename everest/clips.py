"""From a recipe's data section to the clips of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from everest.data.datasets import VideoClips
from everest.data.lists import SampleList, read_samples
from everest.data.rand_augment import RandAugment
from everest.data.views import EvalViews, FinetuneViews, MakeViews, PretrainViews, ValidationViews
from everest.errors import DataError, RecipeError
from everest.settings import DataSettings, Recipe
from everest.tokens import TokenGrid


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a label can be."""

    count: int
    names: tuple[str, ...] | None  # in the order of the labels; None where only numbers are known

    @classmethod
    def of(cls, samples: SampleList, data: DataSettings) -> Classes:
        """Told by `data.num_classes`, else counted: the names, else the labels of the training set."""
        highest = max(sample.labels[0] for sample in samples.samples)
        names = samples.class_names
        return cls(count=data.num_classes or (len(names) if names else highest + 1), names=names)

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)


def pretrain_clips(recipe: Recipe) -> VideoClips:
    """The unlabelled videos of `data.pretrain`, or of `data.train` where that is not given."""
    data, stage = recipe.data, recipe.pretrain
    key = "pretrain" if data.pretrain else "train"
    views = PretrainViews(
        frames=data.frames,
        stride=stage.stride,
        size=data.frame_size,
        flip=data.flip,
        sampling=stage.sampling,
        views_per_decode=stage.views_per_decode,
    )
    samples = _samples(data, key, num_classes=None, labelled=False)
    return _clips(recipe, samples, views, replace_bad=True)


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
        rand_augment=settings
        and RandAugment(magnitude=settings.magnitude, std=settings.std, ops=settings.ops),
        erasing=stage.erasing,
    )
    samples = _samples(data, "train", num_classes=data.num_classes, labelled=True)
    return _clips(recipe, samples, views, replace_bad=True), Classes.of(samples, data)


def validation_clips(recipe: Recipe, classes: Classes) -> VideoClips | None:
    """One centre view of each video of `data.val`; None without a list."""
    data, stage = recipe.data, recipe.finetune
    if data.val is None:
        return None
    views = ValidationViews(
        frames=data.frames, stride=stage.stride, size=data.frame_size, sampling=stage.sampling
    )
    samples = _samples(data, "val", num_classes=classes.count, labelled=True, names=classes.names)
    return _clips(recipe, samples, views, replace_bad=False)


def test_clips(recipe: Recipe, classes: Classes) -> VideoClips:
    """`eval.clips` x `eval.crops` views of each video of `data.test`."""
    data, stage = recipe.data, recipe.finetune
    views = EvalViews(
        frames=data.frames,
        stride=stage.stride,
        size=data.frame_size,
        clips=recipe.eval.clips,
        crops=recipe.eval.crops,
        sampling=stage.sampling,
    )
    samples = _samples(data, "test", num_classes=classes.count, labelled=True, names=classes.names)
    return _clips(recipe, samples, views, replace_bad=False)


def _samples(
    data: DataSettings,
    key: str,
    *,
    num_classes: int | None,
    labelled: bool,
    names: tuple[str, ...] | None = None,
) -> SampleList:
    source = getattr(data, key)
    if source is None:
        raise RecipeError(f"data.{key}: not set; name a list or a folder of videos")
    if data.heads is not None:
        raise RecipeError("data.heads: several heads are not available in this version; use one label column")
    root = Path(data.root)
    if not root.is_dir():
        raise DataError(f"data.root: no folder '{root}'; set it by --data DIR")
    if names is None and data.classes is not None:
        names = _class_names(root / data.classes)
    return read_samples(
        root / source, root=root, classes=names, num_classes=num_classes, heads=None, labelled=labelled
    )


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"data.classes: no file '{path}'")
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())


def _clips(recipe: Recipe, samples: SampleList, views: MakeViews, *, replace_bad: bool) -> VideoClips:
    data = recipe.data
    grid = TokenGrid.of_clip(frames=data.frames, size=data.frame_size, tubelet=recipe.model.tubelet)
    return VideoClips(
        samples.samples,
        make_views=views,
        seed=recipe.train.seed,
        num_noise=grid.num_tokens + grid.t,
        decoder=data.decoder,
        replace_bad=replace_bad,
    )
