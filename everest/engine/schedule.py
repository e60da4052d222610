"""The arithmetic of a stage: steps, batches, micro-batches that fit in memory, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everest.config.settings import TrainedSection
from everest.errors import RecipeError

WARMUP_DIVISOR: Final = 20  # heuristic: one step in 20 warms up, if the budget is in steps
MAX_VALIDATIONS: Final = 40  # heuristic: in a run whose budget is in steps
MIN_STEPS: Final = 300  # heuristic: updates before a loss shows whether a model learns
USUAL_LR: Final = (1e-5, 4e-3)  # heuristic: somewhat wider than the range of the recipes
PEAK_LR: Final = 1e-3  # heuristic: for new weights, with batches of 16 to 128 clips
LOW_LR: Final = PEAK_LR / 10  # heuristic: the recipes for new weights are above it
MEMORY_FRACTION: Final = 0.8  # heuristic: of the free memory, for the activations of one micro-batch
CPU_BYTES: Final = 2**30  # heuristic: on a CPU larger micro-batches are no faster


def cosine_lr(
    step: int, *, steps: int, warmup: int, peak: float, minimum: float, start: float = 0.0
) -> float:
    """The learning rate of `step` (from 0): linear to `peak`, then half a cosine to `minimum`.

    As in the official code, the ramp includes both its ends: the first step has `start`, two steps in a
    row have the peak, and the last step is slightly above the minimum.
    """
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    progress = (step - warmup) / (steps - warmup)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps and batches of one stage. A step is one update of the weights."""

    steps: int
    warmup_steps: int  # steps of a rising learning rate
    videos_per_epoch: int
    validation_steps: int  # steps from one validation to the next
    batch_size: int  # clips in a step, over all processes and micro-batches
    views: int  # clips that one decoded video gives
    micro_batch: int  # clips in a micro-batch of one process
    processes: int
    peak_lr: float
    min_lr: float
    base_lr: float | None  # the value that `peak_lr` was scaled from; None if the recipe gives `peak_lr`

    @property
    def epochs(self) -> int:
        """The number of epochs, the last of which may be incomplete."""
        return self.epoch(self.steps - 1) + 1

    def epoch(self, step: int) -> int:
        """The epoch of the first video of `step`; both are counted from 0."""
        return step * self.videos_per_step // self.videos_per_epoch

    def is_validated(self, done: int) -> bool:
        """Whether the run is validated after `done` updates: each epoch, if epochs are counted."""
        return done % self.validation_steps == 0 or done == self.steps

    @property
    def accumulation(self) -> int:
        """The number of micro-batches in a step."""
        return self.batch_size // (self.micro_batch * self.processes)

    @property
    def videos_per_step(self) -> int:
        return self.batch_size // self.views

    def lr(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        return cosine_lr(
            step, steps=self.steps, warmup=self.warmup_steps, peak=self.peak_lr, minimum=self.min_lr
        )


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """The bytes that a stage takes on a device in training."""

    state: int  # weights, gradients, moments, averaged weights and frozen networks
    copies: int  # of the weights, in bf16 with gradients, or with adapters added
    per_clip: int  # of a micro-batch

    def needed(self, clips: int) -> int:
        """The bytes of a micro-batch, copies not included."""
        return self.state + clips * self.per_clip


def clips_that_fit(memory: StageMemory, free: int, *, on_cpu: bool) -> int:
    """The clips of a micro-batch, at least one, that fit in the `free` bytes of a device."""
    left = int(free * MEMORY_FRACTION) - memory.state - memory.copies
    return max(1, (min(left, CPU_BYTES) if on_cpu else left) // memory.per_clip)


def plan_stage(
    section: TrainedSection, *, num_videos: int, processes: int, largest_micro_batch: int
) -> Schedule:
    """Plan a stage on `num_videos` videos, each decoded into one or more clips.

    A budget in epochs drops the last, incomplete batch of each, as the official code does; a set smaller
    than one batch is repeated to fill it. A budget in steps uses every video equally often: a batch may begin
    in one epoch and end in the next. A loss that compares the clips of a step takes all of them in one
    micro-batch. The learning rate is base_lr * batch / 256, with the batch of all processes: EVEREST,
    appendix A. A tokenizer's is not scaled, and ends at 0.
    """
    views, pair = section.views_per_decode, 2 if section.mixes_pairs else 1
    unit = views * pair
    units, rest = divmod(section.batch_size, processes * unit)  # in a step of one process
    if rest:
        nearest = max(1, round(section.batch_size / (processes * unit))) * processes * unit
        raise RecipeError(
            f"batch_size {section.batch_size} does not divide over {processes} processes"
            f"{f' x {views} clips of a video' if views > 1 else ''}"
            f"{' in pairs, which mixup and cutmix need' if pair > 1 else ''}; {nearest} is the nearest "
            "that does"
        )
    largest = units if section.one_micro_batch else min(units, max(1, largest_micro_batch // unit))
    videos_per_step = section.batch_size // views
    if section.steps is not None:
        steps, videos_per_epoch = section.steps, num_videos
        warmup = steps // WARMUP_DIVISOR if section.warmup_steps is None else section.warmup_steps
        validation_steps = steps_between_validations(steps, num_videos, videos_per_step)
    else:
        assert section.epochs is not None
        validation_steps = max(1, num_videos // videos_per_step)  # an epoch
        steps, videos_per_epoch = section.epochs * validation_steps, validation_steps * videos_per_step
        warmup = section.warmup_epochs * validation_steps
    peak_lr, min_lr = section.lr_range
    return Schedule(
        steps=steps,
        warmup_steps=warmup,
        videos_per_epoch=videos_per_epoch,
        validation_steps=validation_steps,
        batch_size=section.batch_size,
        views=views,
        micro_batch=unit * next(count for count in range(largest, 0, -1) if units % count == 0),
        processes=processes,
        peak_lr=peak_lr,
        min_lr=min_lr,
        base_lr=section.base_lr,
    )


def steps_between_validations(steps: int, num_videos: int, videos_per_step: int) -> int:
    """The steps between two validations, for a budget in steps: an epoch, or several of a long run."""
    return max(-(-num_videos // videos_per_step), -(-steps // MAX_VALIDATIONS))


def plan_warnings(plan: Schedule, *, new_weights: bool) -> Iterator[str]:
    """Yield warnings about a learning rate, a warm-up and a number of steps with which little is learned.

    Args:
        new_weights: the model does not start from trained weights.
    """
    advice = learning_rate_advice(plan, new_weights=new_weights)
    if advice is not None:
        yield advice
    if plan.warmup_steps >= plan.steps:
        yield (
            f"the warm-up leaves none of {plan.steps} steps, so the learning rate only rises; lower "
            "warmup_epochs or warmup_steps"
        )
    if plan.steps < MIN_STEPS:
        yield describe_few(plan.steps)


def describe_few(steps: int) -> str:
    """The warning about fewer than MIN_STEPS steps."""
    return (
        f"{steps} steps are few: with fewer than {MIN_STEPS}, a model hardly learns; raise its epochs or its "
        "steps"
    )


def learning_rate_advice(plan: Schedule, *, new_weights: bool) -> str | None:
    """Advice about a peak learning rate outside of the usual range (see `plan_warnings`); None inside."""
    (lowest, highest), key = USUAL_LR, "lr" if plan.base_lr is None else "base_lr"
    peak = f"the peak learning rate of {plan.peak_lr:.2g}"
    if plan.peak_lr > highest:
        return (
            f"{peak} is {plan.peak_lr / highest:.2g} times the highest usual one ({highest:g}); if little is "
            f"learned, lower {key} before you add steps"
        )
    if new_weights and plan.base_lr is not None and plan.peak_lr < LOW_LR:
        return (
            f"{peak} (base_lr {plan.base_lr:g} x batch {plan.batch_size} / 256) is far below the usual "
            f"{PEAK_LR:g} for training from scratch, so little is learned; "
            f"set base_lr={PEAK_LR * 256 / plan.batch_size:g}"
        )
    return f"{peak} is below the usual {lowest:g}; raise {key}" if plan.peak_lr < lowest else None
