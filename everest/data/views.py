"""The views of a sample for training and evaluation: frames are chosen, decoded once, augmented and cropped.

V views, C channels, T frames, H W pixels; sizes are (height, width). Each class holds the settings of one
stage and is called with a sample to get its `SampleViews`. Random choices are drawn in the order frames,
augmentation, crop, flip, erasing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from everest.data.crops import (
    NO_BOX,
    Box,
    Size,
    center_box,
    covering_size,
    crop,
    erasing_box,
    multi_scale_crop,
    random_resized_crop,
    resize,
    view_boxes,
)
from everest.data.footage import Footage, read_footage
from everest.data.frames import FrameIds, find_sampling
from everest.lists.sample import Sample
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD
from everest.video.reader import frames_in_order, read_frames

if TYPE_CHECKING:
    from everest.data.augment import RandAugment

Out = Tensor | None  # (V, C, T, H, W) uint8


class SampleViews(NamedTuple):
    """The views of one sample."""

    frames: Tensor  # (V, C, T, H, W) uint8
    erase_boxes: Tensor  # (V, 4) int64: top, left, height, width; a height of 0 erases nothing
    regions: Tensor | None = None  # (V, 3) int64, see `Regions`; `frames` are then (V, T, R, S, C)


@dataclass(frozen=True, slots=True)
class FrameReader:
    """Reads frames of a sample by their numbers in the file."""

    sample: Sample
    footage: Footage
    decoder: str
    channels: int  # C

    def read(self, file_ids: FrameIds) -> Tensor:
        """The frames (T, H, W, C) uint8."""
        ids = file_ids.tolist()
        return read_frames(self.sample.video, ids, decoder=self.decoder, channels=self.channels)

    def read_in_order(self, file_ids: FrameIds) -> Iterable[Tensor]:
        """The frames (H, W, C) uint8 of rising numbers, each decoded when it is needed."""
        if self.decoder == "auto":
            return frames_in_order(self.sample.video, file_ids, channels=self.channels)
        return self.read(file_ids)


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """The clips that a model takes: which frames of a video, their size and their normalization."""

    frames: int
    stride: int  # frames from one sampled frame to the next; without effect unless `sampling` is dense
    size: tuple[int, int]  # height, width
    sampling: str = "dense"  # dense, segment or spread, as the key `finetune.sampling` of a recipe
    fps: float | None = None  # frames per second that the stride counts; None: the file's rate
    mean: tuple[float, ...] = IMAGENET_MEAN  # mean of the RGB values in [0, 1]; one number: the mean of luma
    std: tuple[float, ...] = IMAGENET_STD  # standard deviation of the same values

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("stride", self.stride), ("size", min(self.size))):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.fps is not None and not 0 < self.fps < inf:
            raise ValueError(f"fps must be a number above 0, not {self.fps}")

    @property
    def channels(self) -> int:
        """C: 3 colors, or 1 for luma."""
        return len(self.mean)

    def read(self, video: str | Path | Sample) -> Tensor:
        """Read the middle of a video or sample as evaluation does with one view: (C, T, H, W) uint8."""
        clip = {key.name: getattr(self, key.name) for key in fields(ClipFormat)}
        center = EvalViews(**clip, clips=1, crops=1)
        sample = video if isinstance(video, Sample) else Sample(path=str(video))
        return center(sample, np.random.default_rng(0), "auto").frames[0]  # nothing is drawn


@dataclass(frozen=True, kw_only=True)
class StageViews(ClipFormat, ABC):
    """Makes the views of samples for one stage."""

    antialias: ClassVar[bool] = False  # whether crops are resized with a filter, see `resize`
    region_size: Size | None = None  # (R, S) of regions that the device resizes; None: crops are resized here

    @property
    def num_views(self) -> int:
        """The number V of views."""
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the views in memory."""
        if self.region_size is None:
            return self.num_views, self.channels, self.frames, *self.size
        return self.num_views, self.frames, *self.region_size, self.channels

    def __call__(self, sample: Sample, rng: Generator, decoder: str, out: Out = None) -> SampleViews:
        """The views of a sample, in the memory `out` if it is given."""
        reader = FrameReader(sample, read_footage(sample, self.fps), decoder, self.channels)
        return self.make(reader, rng, out)

    @abstractmethod
    def make(self, reader: FrameReader, rng: Generator, out: Out) -> SampleViews:
        """The views of the sample that `reader` reads.

        Args:
            rng: draws in the order frames, augmentation, crop, flip, erasing.
            out: memory for the views: (V, C, T, H, W) uint8, regions (V, T, R, S, C); None: new memory.
        """

    def decode(self, reader: FrameReader, choose: Callable[..., FrameIds], *rng: Generator) -> Tensor:
        """The frames (T, H, W, C) uint8 that `choose(number of frames, T, stride, *rng)` selects."""
        ids = choose(reader.footage.num_frames, self.frames, self.stride, *rng)
        return reader.read(reader.footage.file_ids(ids))

    def _resize(self, crops: Sequence[tuple[Tensor, bool]], out: Out, *, erase: Box = NO_BOX) -> SampleViews:
        """Resize crops (T, h, w, C) and flip crops marked True, or leave both to the device."""
        if self.region_size is None:
            views = [resize(pixels, self.size, antialias=self.antialias).numpy() for pixels, _ in crops]
            directions = [-1 if is_flipped else 1 for _, is_flipped in crops]
            views = [view[..., ::direction] for view, direction in zip(views, directions, strict=True)]
            return _stack_views(views, out, erase)
        frames = torch.empty(self.shape, dtype=torch.uint8) if out is None else out
        boxes = []
        for target, (pixels, is_flipped) in zip(frames, crops, strict=True):
            if pixels.size(1) > self.region_size[0] or pixels.size(2) > self.region_size[1]:
                pixels = resize(pixels, self.size, antialias=self.antialias).permute(1, 2, 3, 0)
            target[:, : pixels.size(1), : pixels.size(2)] = pixels
            boxes.append((pixels.size(1), pixels.size(2), int(is_flipped)))
        return SampleViews(frames, torch.tensor([erase] * len(crops)), regions=torch.tensor(boxes))


@dataclass(frozen=True, kw_only=True)
class PretrainViews(StageViews):
    """Pre-training views: a random window, cropped and flipped `views_per_decode` times from the same frames.

    The released pre-training never flips; Table 7 of the EVEREST paper does.
    """

    antialias: ClassVar[bool] = True
    flip: bool
    views_per_decode: int
    are_compared: bool = False  # each view has its own window, and all views are flipped or none
    crop_area: tuple[float, float] | None = None  # bounds, fractions of the frame; None: a multi-scale crop

    @property
    def num_views(self) -> int:
        return self.views_per_decode

    def make(self, reader: FrameReader, rng: Generator, out: Out) -> SampleViews:
        window = find_sampling(self.sampling).pretrain
        if self.are_compared:
            length = reader.footage.num_frames
            ids = [window(length, self.frames, self.stride, rng) for _ in range(self.num_views)]
            file_ids, positions = np.unique(reader.footage.file_ids(np.stack(ids)), return_inverse=True)
            video = reader.read(file_ids)  # (F, H, W, C)
            clips = [video[row] for row in torch.from_numpy(positions.reshape(-1, self.frames))]
        else:
            clips = [self.decode(reader, window, rng)] * self.num_views
        is_flipped = None
        crops = []
        for clip in clips:
            if self.crop_area is None:
                box = multi_scale_crop(_frame_size(clip), self.size, rng)
            else:
                box = random_resized_crop(_frame_size(clip), self.size, rng, areas=self.crop_area)
            if is_flipped is None or not self.are_compared:
                is_flipped = self.flip and rng.random() < 0.5
            crops.append((crop(clip, box), is_flipped))
        return self._resize(crops, out)


@dataclass(frozen=True, kw_only=True)
class FinetuneViews(StageViews):
    """Fine-tuning views: random window, RandAugment, random resized crop, flip and box to erase."""

    flip: bool
    crop_area: tuple[float, float]  # smallest and largest fraction of the frame
    rand_augment: RandAugment | None
    erasing: float  # the probability of a box to erase

    def make(self, reader: FrameReader, rng: Generator, out: Out) -> SampleViews:
        clip = self.decode(reader, find_sampling(self.sampling).finetune, rng)
        if self.rand_augment is not None:
            clip = self.rand_augment(clip, rng)
        box = random_resized_crop(_frame_size(clip), self.size, rng, areas=self.crop_area)
        is_flipped = self.flip and rng.random() < 0.5
        erase_box = erasing_box(self.size, self.erasing, rng)
        return self._resize([(crop(clip, box), is_flipped)], out, erase=erase_box)


@dataclass(frozen=True, kw_only=True)
class ValidationViews(StageViews):
    """Validation view: the center crop of the middle window; deterministic, unlike the official code."""

    def make(self, reader: FrameReader, rng: Generator, out: Out) -> SampleViews:
        clip = self.decode(reader, find_sampling(self.sampling).center)
        covering = covering_size(_frame_size(clip), self.size)
        view = resize(clip, covering, antialias=False)[..., *center_box(covering, self.size).slices]
        return _stack_views([view], out)


@dataclass(frozen=True, kw_only=True)
class EvalViews(StageViews):
    """Evaluation views: `clips` windows x `crops` boxes, ordered by clip; each frame is decoded once."""

    clips: int
    crops: int

    @property
    def num_views(self) -> int:
        return self.clips * self.crops

    def make(self, reader: FrameReader, rng: Generator, out: Out) -> SampleViews:
        clip_ids = self.clip_frame_ids(reader.footage)  # (clips, T)
        file_ids, positions = np.unique(clip_ids, return_inverse=True)  # (F,), (clips, T)
        frames = reader.read_in_order(file_ids)  # large frames do not fit into the memory together
        video = torch.cat([self.resize_frames(frame[None]) for frame in frames], dim=1)
        return _stack_views(self.cut_views(video, positions), out)

    def clip_frame_ids(self, footage: Footage) -> NDArray[np.int64]:
        """The frame numbers in the file of each clip, (clips, T)."""
        length = footage.num_frames if self.sampling == "dense" else footage.extent
        choose = find_sampling(self.sampling).views
        return footage.file_ids(np.stack(choose(length, self.frames, self.stride, self.clips, footage.begin)))

    def resize_frames(self, frames: Tensor) -> Tensor:
        """Resize decoded (F, H, W, C) uint8 frames to (C, F, H', W') that cover the views."""
        video = resize(frames, covering_size(_frame_size(frames), self.size), antialias=False)
        return video.contiguous()  # made contiguous once instead of once per view

    def cut_views(self, video: Tensor, positions: NDArray[np.int64]) -> list[Tensor]:
        """Cut the views (C, T, H, W) out of (C, F, H', W'); `positions` (clips, T) number its frames."""
        clips = torch.from_numpy(positions.reshape(self.clips, self.frames))
        return [crop[:, ids] for ids in clips for crop in self.cut_crops(video)]

    def cut_crops(self, video: Tensor) -> list[Tensor]:
        """Cut the crops (C, F, H, W) of the views out of (C, F, H', W')."""
        boxes = view_boxes((video.shape[2], video.shape[3]), self.size, self.crops)
        return [video[..., *box.slices] for box in boxes]


def _frame_size(clip: Tensor) -> Size:
    return clip.shape[1], clip.shape[2]


def _stack_views(views: Sequence[Tensor | NDArray[np.uint8]], out: Out, erase: Box = NO_BOX) -> SampleViews:
    """Write views (C, T, H, W) into `out` (V, C, T, H, W), or into new memory."""
    frames = torch.empty(len(views), *views[0].shape, dtype=torch.uint8) if out is None else out
    for target, view in zip(frames.numpy(), views, strict=True):
        np.copyto(target, view)  # torch has no views that are flipped, and would copy twice
    return SampleViews(frames, torch.tensor([erase] * len(views), dtype=torch.int64))
