"""Samples to batches: which sample comes when, its random numbers, what takes the place of a broken video.

V views, T frames, H W pixels, M random numbers a view. Every choice about a sample follows from (seed, epoch,
index), the order of the samples from (seed, epoch); so a run continued anywhere, on any number of processes
and workers, sees what the unbroken run would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from everest.data.cache import FrameCache
from everest.data.samples import Sample
from everest.data.views import MakeViews, Views
from everest.errors import DataError, UserError
from everest.system.randomness import Purpose, generator_at
from everest.video.reader import VideoError

SampleKey = tuple[int, int]  # (epoch, index of the sample)

NONE_FAILED: Final = "[]"  # `Clip.failed` of a clip whose video could be read
MAX_TRIES: Final = 10  # unreadable videos in a row; 1 in 100 is all that a run may meet


class Clip(NamedTuple):
    """One item, and with a leading batch dimension one batch. `default_collate` takes no dataclass."""

    frames: Tensor  # (V, 3, T, H, W) uint8
    label: Tensor  # (heads,) int64, -1 where there is none
    video_id: str
    noise: Tensor  # (V, M) float32 uniform in [0, 1): masks and frame draws
    erase: Tensor  # (V, 4) int64 top, left, height, width; a height of 0 erases nothing
    failed: str  # JSON: [path, reason] of every video that could not be read on the way
    tokens: dict[
        str, Tensor
    ]  # (V, …) each, by the names of MaskedAutoencoder's inputs; empty without `tokens`


class ClipTokens(Protocol):
    """What a tokenizer made of clips before: of some variants of each sample."""

    @property
    def variants(self) -> int: ...

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """(V, …) tensors of the clip of (epoch `variant`, `index`).

        Raises:
            VideoError: the sample could not be read then.
        """
        ...


class VideoClips(Dataset[Clip | UserError]):
    """Clips of samples, addressed by (epoch, index).

    Args:
        num_noise: M.
        cache: keeps decoded frames.
        replace_bad: put another sample's clip of the same epoch in the place of one that cannot be read
            (training); else its frames are zeros and `failed` says so (test).
        tokens: what is known of the clips of the first epochs; later epochs show these clips again, with
            other random numbers.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        make_views: MakeViews,
        seed: int,
        num_noise: int,
        decoder: str,
        replace_bad: bool,
        cache: FrameCache | None = None,
        tokens: ClipTokens | None = None,
    ) -> None:
        self.cache = cache
        self.tokens = tokens
        self.samples = samples
        self.make_views = make_views
        self.seed = seed
        self.num_noise = num_noise
        self.decoder = decoder
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> Clip | UserError:
        """The clip of a key; an error is handed over, as one raised in a worker would lose its message."""
        try:
            return self.read(key)
        except UserError as error:
            return error

    def read(self, key: SampleKey) -> Clip:
        """The clip of a key.

        Raises:
            DataError: too many videos in a row cannot be read.
        """
        chosen, failed = key[1], []
        for attempt in range(MAX_TRIES):
            if attempt:
                chosen = self._instead(key, attempt)
            sample = self.samples[chosen]
            try:
                views, tokens = self._views(key[0], chosen)
            except VideoError as error:
                failed.append((str(error.path), error.reason))
                if not self.replace_bad:
                    return self._clip(key, sample, self._no_views(), {}, failed)
            else:
                return self._clip(key, sample, views, tokens, failed)
        path, reason = failed[0]
        raise DataError(f"{MAX_TRIES} videos in a row cannot be read, first {path}: {reason}")

    def _instead(self, key: SampleKey, attempt: int) -> int:
        """Which sample takes the place of one that cannot be read."""
        return int(generator_at(self.seed, Purpose.VIEWS, *key, attempt).integers(len(self.samples)))

    def _views(self, epoch: int, index: int) -> tuple[Views, dict[str, Tensor]]:
        """The views of a sample, and what is known of them."""
        tokens = {}
        if self.tokens is not None:
            epoch %= self.tokens.variants
            tokens = self.tokens.read(epoch, index)
        rng = generator_at(self.seed, Purpose.VIEWS, epoch, index, 0)
        return self.make_views(self.samples[index], rng, self.decoder, self.cache), tokens

    def _clip(
        self,
        key: SampleKey,
        sample: Sample,
        views: Views,
        tokens: dict[str, Tensor],
        failed: list[tuple[str, str]],
    ) -> Clip:
        num_views = len(views.frames)
        rng = generator_at(self.seed, Purpose.NOISE, *key)
        noise = rng.random((num_views, self.num_noise), dtype=np.float32)
        return Clip(
            frames=views.frames,
            label=torch.tensor(sample.labels or (-1,), dtype=torch.int64),
            video_id=sample.video_id,
            noise=torch.from_numpy(noise),
            erase=views.erase,
            failed=json.dumps(failed),
            tokens=tokens,
        )

    def _no_views(self) -> Views:
        maker = self.make_views
        frames = torch.zeros(maker.num_views, 3, maker.frames, *maker.size, dtype=torch.uint8)
        return Views(frames, erase=torch.zeros(maker.num_views, 4, dtype=torch.int64))


class StepSampler(Sampler[list[SampleKey]]):
    """Micro-batches of (epoch, index) of one process, from any step to the end of the last epoch.

    One iteration goes over all epochs, so that the loader's workers live as long as the run and nobody has to
    tell them the epoch. A step's batch is cut into contiguous shares of the processes, a share into
    `accumulation` micro-batches. What is left of an epoch after its steps is left out; fewer samples than a
    batch are repeated until they fill it.

    Args:
        batch_size: samples a step, over all processes and micro-batches.
        start_step: steps already done, over all epochs.
        repeat_first: give the first step's batch again and again, to see whether it can be learned by heart.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        epochs: int,
        steps_per_epoch: int,
        seed: int,
        start_step: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        repeat_first: bool = False,
    ) -> None:
        assert batch_size % (world * accumulation) == 0
        assert steps_per_epoch == 1 or steps_per_epoch * batch_size <= num_samples
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_steps = epochs * steps_per_epoch
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.start_step = start_step
        self.accumulation = accumulation
        self.rank = rank
        self.world = world
        self.repeat_first = repeat_first

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        if self.repeat_first:
            yield from self._first_again()
            return
        first_epoch, skipped = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.num_steps // self.steps_per_epoch):
            order = self._order(epoch)  # (steps, processes, micro-batches, samples)
            for micro_batches in order[skipped:, self.rank]:
                for indices in micro_batches.tolist():
                    yield [(epoch, index) for index in indices]
            skipped = 0

    def _first_again(self) -> Iterator[list[SampleKey]]:
        first = self._order(0)[0, self.rank].tolist()
        for _ in range(self.num_steps - self.start_step):
            yield from ([(0, index) for index in indices] for indices in first)

    def _order(self, epoch: int) -> np.ndarray:
        order = generator_at(self.seed, Purpose.ORDER, epoch).permutation(self.num_samples)
        order = np.resize(order, self.steps_per_epoch * self.batch_size)
        return order.reshape(self.steps_per_epoch, self.world, self.accumulation, -1)


def failures(batch: Clip) -> list[list[tuple[str, str]]]:
    """For every sample of `batch` that did not come at once: path and reason of what could not be read."""
    of_samples = (json.loads(text) for text in batch.failed)
    return [[(path, reason) for path, reason in tries] for tries in of_samples if tries]
