"""The properties of a data set from which a recipe is suggested: its videos and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from everest.config.heads import Task
from everest.config.settings import DataSettings, Recipe
from everest.data.footage import footage_of
from everest.data.recipe_clips import finetune_clips, pretrain_clips
from everest.errors import DataError
from everest.lists.labels import count_classes, imbalance
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import read_source
from everest.probes.collapse import MOST_HELD_OUT, MOST_VIDEOS
from everest.system.storage import join_location, parse_location
from everest.video.reader import probe
from everest.video.stream import VideoError

MOST_PROBED: Final = 40  # videos whose length and size are read, spread over the list
TINY: Final = 30  # our choice: an accuracy on fewer videos jumps by several percent


@dataclass(frozen=True, kw_only=True)
class ProbeList:
    """The videos that probes measure."""

    name: str | None  # as data.train or data.val has it; None: without labels
    videos: int
    held_out: int  # of data.val, whose loss is measured

    def without_labels(self) -> ProbeList:
        """As many of the videos as probes without labels measure."""
        return replace(self, name=None, videos=min(self.videos, MOST_VIDEOS))


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The properties of a data set on which the rules depend."""

    train: ListSize
    pretrain: ListSize | None = None  # of `data.pretrain`; None: the same as for training
    classes: int  # 0: the videos have no labels, or numbers
    class_names: tuple[str, ...] = ()  # empty: only the indices of the classes are known
    frames: float  # of the median video or window; at `data.fps`, if it is set
    pretrain_frames: float = 0.0  # the same of `data.pretrain`; 0: the same as for training
    height: float
    width: float
    task: Task = "single-label"
    imbalance: float = 1.0  # ratio of the most frequent class to the rarest that has a video
    probed: ProbeList


def examine_data(data: DataSettings, *, labeled: bool = True) -> DataFacts:
    """Count the training videos, windows, groups and classes, and read the length and size of some videos."""
    recipe, root = Recipe(name="suggest", data=data), parse_location(data.root)
    clips, known = finetune_clips(recipe) if labeled else (pretrain_clips(recipe), None)
    more = pretrain_clips(recipe).samples if labeled and data.pretrain else ()
    held: dict[str, Sequence[Sample]] = {}
    for key in ("val", "test"):  # their labels, too: a typo would show only after hours of training
        name = getattr(data, key)
        if name is not None and join_location(root, name).exists():
            held[key] = read_source(data, key, labeled=labeled, classes=known, may_miss=True).samples
    val = held.get("val", ())
    groups = {sample.group for sample in val}
    is_one_source = len(groups) == 1 and groups != {None}  # no video is classified by another source
    has_classes = labeled and not data.heads and data.task == "single-label"
    # The validation list, or the training list if that is tiny; without labels if both are tiny.
    probed = ProbeList(name=None, videos=len(val) or len(clips), held_out=min(len(val), MOST_HELD_OUT))
    if has_classes and len(val) >= TINY and not is_one_source:
        probed = replace(probed, name=data.val)
    elif has_classes and len(clips) >= TINY:
        probed = replace(probed, name=data.train, videos=len(clips))
    else:
        probed = probed.without_labels()
    frames, height, width = _median_size(clips.samples, data.fps)
    # Of the first label, which a sampler balances.
    counts = count_classes(sample.labels[0] for sample in clips.samples) if labeled else {}
    return DataFacts(
        train=ListSize.of(clips.samples),
        pretrain=ListSize.of(more) if more else None,
        classes=sum(head.outputs for head in known.heads if head.task != "regression") if known else 0,
        class_names=(known.names if known else None) or (),
        frames=frames,
        pretrain_frames=_median_size(more, data.fps)[0] if more else 0.0,
        height=height,
        width=width,
        task=data.task if labeled else "single-label",
        imbalance=imbalance(counts.values()),
        probed=probed,
    )


def _median_size(samples: Sequence[Sample], fps: float | None) -> tuple[float, float, float]:
    """The median frames, height and width of some of the videos or segments."""
    sizes, problems = [], []
    for sample in samples[:: max(1, len(samples) // MOST_PROBED)]:
        try:
            info, frames = probe(sample.video), footage_of(sample, fps).num_frames
        except VideoError as error:
            problems.append(str(error))
        else:
            sizes.append((frames, info.height, info.width))
    if not sizes:
        raise DataError(f"none of the videos can be read; the first: {problems[0]}")
    frames, height, width = map(median, zip(*sizes, strict=True))
    return frames, height, width
