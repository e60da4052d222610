"""The data set of clips, and the order of its samples: random numbers, unreadable videos, micro-batches.

V views, C channels, T frames, H W pixels, M random numbers per view, L values of a label. Every choice about
a sample follows from (seed, epoch, index), and the order of the samples from (seed, epoch). A run that is
resumed anywhere, on any number of processes and workers, therefore sees the same clips as an uninterrupted
run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from itertools import count, islice
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.config.heads import Heads
from everest.data.crops import Regions
from everest.data.randomness import Purpose, generator_at
from everest.data.views import PretrainViews, SampleViews, StageViews
from everest.data.workers import Layout
from everest.errors import DataError
from everest.lists.labels import label_values
from everest.lists.sample import Sample
from everest.video.reader import VideoError

MAX_TRIES: Final = 10  # unreadable videos in a row before the run ends
SampleKey = tuple[int, int]  # (pass over the samples, index of the sample); with odds, each draw is a pass
FailedReads = list[tuple[str, str]]  # path and reason of every video that was tried and could not be read


class LoadedSample(NamedTuple):
    """The views of a sample, its label and random numbers."""

    frames: Tensor  # (V, C, T, H, W) uint8; with `regions` (V, T, R, S, C)
    label: Tensor  # (L,) float32, see `label_values`; -1 if there is none
    video_id: str
    noise: Tensor  # (V, M) float32 uniform in [0, 1), for masks and frame selection
    erase_boxes: Tensor  # (V, 4) int64 top, left, height, width; a height of 0 erases nothing
    failed_reads: FailedReads
    inputs: dict[str, Tensor]  # (V, …) each, further inputs of the model by their names; may be empty
    regions: Regions | None = None  # the regions from which the device makes the frames


class Batch(NamedTuple):
    """B samples; see `LoadedSample`."""

    frames: Tensor  # (B, V, C, T, H, W) uint8; with `regions` (B, V, T, R, S, C)
    label: Tensor  # (B, L) float32
    video_ids: list[str]
    noise: Tensor  # (B, V, M) float32
    erase_boxes: Tensor  # (B, V, 4) int64
    failed_reads: list[FailedReads]
    inputs: dict[str, Tensor]  # (B, V, …) each
    copies: list[torch.cuda.Event]  # recorded after each copy to a GPU that may be under way
    regions: Regions | None = None


class ClipTokens(Protocol):
    """Tokens that a tokenizer computed in advance, for some variants of each sample."""

    @property
    def variants(self) -> int: ...

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """The (V, …) tensors of the sample `index` in the epoch `variant`."""
        ...


@dataclass(eq=False)
class ClipDataset:
    """A data set of samples; each sample gives different clips in each epoch."""

    samples: Sequence[Sample]
    _: KW_ONLY
    views: StageViews
    seed: int
    num_noise: int  # M
    decoder: str
    # Replace an unreadable sample by another, random one (training), or fill it with zeros (evaluation).
    replace_bad: bool
    # Tokens of the clips of the first epochs; later epochs repeat these clips with other random numbers.
    tokens: ClipTokens | None = None
    heads: Heads = ()  # one head per label of a sample; empty: the clips have no labels
    notices: tuple[str, ...] = ()  # lines about the videos to show when a run starts
    sampling_odds: NDArray[np.float64] | None = None  # (samples,), the `odds` of a `StepSampler`

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def compares_videos(self) -> bool:
        """Whether the model needs to know which clips come from the same video."""
        return isinstance(self.views, PretrainViews) and self.views.are_compared

    def layout(self) -> Layout:
        """The shape and type of each tensor of a sample; CheckpointError if the tokens are damaged."""
        views = self.views
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "frames": (views.shape, torch.uint8),
            "label": ((sum(head.label_width for head in self.heads) or 1,), torch.float32),
            "noise": ((views.num_views, self.num_noise), torch.float32),
            "erase_boxes": ((views.num_views, 4), torch.int64),
        }
        if views.region_size is not None:
            layout["regions"] = ((views.num_views, 3), torch.int64)
        if self.compares_videos:
            layout["videos"] = ((views.num_views,), torch.int64)
        if self.tokens is None:
            return layout
        for index in range(len(self.samples)):
            with suppress(VideoError):
                tokens = self.tokens.read(0, index)
                return layout | {name: (tuple(x.shape), x.dtype) for name, x in tokens.items()}
        return layout  # no sample is readable: nothing will be written

    def regions(self, boxes: Tensor | None) -> Regions | None:
        """The regions of clips, or None if the device does not resize them."""
        views = self.views
        return None if boxes is None else Regions(boxes, views.size, views.antialias)

    def read(self, key: SampleKey, out: Tensor | None = None) -> LoadedSample:
        """Read the sample of a key, with its frames in the memory `out` (V, C, T, H, W) if that is given.

        Raises:
            DataError: MAX_TRIES samples in a row are unreadable.
        """
        epoch, index = key
        failed_reads: FailedReads = []
        for attempt in range(MAX_TRIES):
            if attempt:  # another sample replaces the unreadable one
                rng = generator_at(self.seed, Purpose.VIEWS, *key, attempt)
                index = int(rng.integers(len(self.samples)))
            variant = epoch if self.tokens is None else epoch % self.tokens.variants
            rng = generator_at(self.seed, Purpose.VIEWS, variant, index, 0)
            try:
                inputs = {} if self.tokens is None else self.tokens.read(variant, index)
                views = self.views(self.samples[index], rng, self.decoder, out)
            except VideoError as error:
                failed_reads.append((str(error.path), error.reason))
                if self.replace_bad:
                    continue
                views, inputs = self._empty_views(out), {}
            break
        else:
            path, reason = failed_reads[0]
            num_videos = len({path for path, _ in failed_reads})
            raise DataError(
                f"{MAX_TRIES} draws in a row gave unreadable videos ({num_videos} of {len(self.samples)}), "
                f"first {path}: {reason}"
            )
        if self.compares_videos:
            inputs = {"videos": torch.full((len(views.frames),), index)}
        rng = generator_at(self.seed, Purpose.NOISE, *key)
        noise = rng.random((len(views.frames), self.num_noise), dtype=np.float32)
        sample = self.samples[index]
        return LoadedSample(
            frames=views.frames,
            label=torch.tensor(label_values(sample.labels, self.heads) or (-1,), dtype=torch.float32),
            video_id=sample.video_id,
            noise=torch.from_numpy(noise),
            erase_boxes=views.erase_boxes,
            failed_reads=failed_reads,
            inputs=inputs,
            regions=self.regions(views.regions),
        )

    def _empty_views(self, out: Tensor | None) -> SampleViews:
        """The views of an unreadable sample: zeros."""
        views = self.views
        frames = torch.empty(views.shape, dtype=torch.uint8) if out is None else out
        boxes = torch.zeros(views.num_views, 4, dtype=torch.int64)
        regions = None if views.region_size is None else torch.tensor([(*views.size, 0)] * views.num_views)
        return SampleViews(frames.zero_(), boxes, regions)


@dataclass(eq=False, kw_only=True)
class StepSampler:
    """Micro-batches of sample keys for one process, from any step to the last.

    One iteration covers all epochs, so that the loader's workers live as long as the run and need not be
    informed of the epoch. Steps take their samples from the epochs one after the other. The batch of a step
    is split into contiguous parts, one per process, and each part into `accumulation` micro-batches.
    """

    num_samples: int
    samples_per_step: int  # samples per step, over all processes and micro-batches
    num_steps: int  # steps of the run
    samples_per_epoch: int  # below `num_samples`, each epoch leaves out other samples; above, some repeat
    seed: int
    start_step: int = 0  # steps already done
    accumulation: int = 1
    rank: int = 0
    num_processes: int = 1
    repeat_first: bool = False  # repeat the first batch, to check whether a model can overfit it
    # (num_samples,): samples are drawn with replacement, in proportion to their odds. None: an epoch is a
    # permutation of the samples.
    odds: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        assert self.samples_per_step % (self.num_processes * self.accumulation) == 0

    @property
    def samples_per_micro_batch(self) -> int:
        """The number of samples of a micro-batch."""
        return self.samples_per_step // (self.num_processes * self.accumulation)

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = self._keys(0 if self.repeat_first else self.start_step)
        samples_per_process = self.samples_per_step // self.num_processes
        first = self.rank * samples_per_process
        batch = []
        for step in range(self.start_step, self.num_steps):
            if not self.repeat_first or step == self.start_step:
                batch = list(islice(keys, self.samples_per_step))[first : first + samples_per_process]
            size = self.samples_per_micro_batch
            yield from (batch[start : start + size] for start in range(0, samples_per_process, size))

    def _keys(self, step: int) -> Iterator[SampleKey]:
        """Yield the samples of `step` and all later steps, without end."""
        first_epoch, skipped = divmod(step * self.samples_per_step, self.samples_per_epoch)
        num_passes = math.ceil(self.samples_per_epoch / self.num_samples)  # passes over the samples per epoch
        for epoch in count(first_epoch):
            rng = generator_at(self.seed, Purpose.ORDER, epoch)
            position = np.arange(self.samples_per_epoch)
            # A video that occurs several times in an epoch gives a different clip each time.
            if self.odds is None:
                passes = epoch * num_passes + position // self.num_samples
                indices = np.resize(rng.permutation(self.num_samples), self.samples_per_epoch)
            else:
                passes = epoch * self.samples_per_epoch + position
                probabilities = self.odds / self.odds.sum()
                indices = rng.choice(self.num_samples, size=self.samples_per_epoch, p=probabilities)
            yield from zip(passes[skipped:].tolist(), indices[skipped:].tolist(), strict=True)
            skipped = 0
