"""The arithmetic of a stage: steps, batches, learning rate, and advice when a pass does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from everest.config.settings import FinetuneSettings, PretrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.errors import RecipeError
from everest.train.optim import cosine_lr, scaled_lr

BF16_BYTES = 2  # of a value

# Activations of one clip, without or with checkpointing, by the bytes of a value.
BytesPerClip = Callable[[bool, int], int]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The steps and batches of one stage. A step is one update of the weights."""

    epochs: int
    steps_per_epoch: int
    warmup_epochs: int
    batch_size: int  # clips a step, over all processes and passes
    views: int  # clips that one decoded video gives
    micro_batch: int  # clips a pass of one process
    processes: int
    peak_lr: float
    min_lr: float
    base_lr: float | None  # the value that `peak_lr` was scaled from; None if the recipe gives `peak_lr`

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def accumulation(self) -> int:
        """Number of passes a step."""
        return self.batch_size // (self.micro_batch * self.processes)

    @property
    def videos_per_step(self) -> int:
        return self.batch_size // self.views

    def lr(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        return cosine_lr(
            step,
            steps=self.steps,
            warmup=self.warmup_epochs * self.steps_per_epoch,
            peak=self.peak_lr,
            minimum=self.min_lr,
        )


def plan_stage(
    stage: PretrainSettings | FinetuneSettings | TokenizerSettings,
    *,
    num_videos: int,
    processes: int,
    largest_micro_batch: int,
) -> StagePlan:
    """Plan a stage on `num_videos` videos, each decoded into `views_per_decode` clips.

    The last, incomplete batch of an epoch is dropped, as in the released programs. A set smaller than one
    batch is repeated to fill it.

    Raises:
        RecipeError: the batch does not divide over processes and views.
    """
    views = stage.views_per_decode if isinstance(stage, PretrainSettings) else 1
    pair = 2 if isinstance(stage, FinetuneSettings) and (stage.mixup or stage.cutmix) else 1
    unit = views * pair  # clips that stay together in a pass
    share, rest = divmod(stage.batch_size, processes * unit)
    if rest:
        parts = f"{processes} processes" + (f" x {views} views_per_decode" if views > 1 else "")
        parts += " in pairs, which mixup and cutmix need" if pair > 1 else ""
        raise RecipeError(f"batch_size {stage.batch_size} does not divide over {parts}")
    largest = min(share, max(1, largest_micro_batch // unit))
    if isinstance(stage, TokenizerSettings):
        base_lr, peak_lr = None, stage.lr
    else:
        base_lr, peak_lr = stage.base_lr, scaled_lr(stage.base_lr, stage.batch_size)
    return StagePlan(
        epochs=stage.epochs,
        steps_per_epoch=max(1, num_videos // (stage.batch_size // views)),
        warmup_epochs=stage.warmup_epochs,
        batch_size=stage.batch_size,
        views=views,
        micro_batch=unit * next(number for number in range(largest, 0, -1) if share % number == 0),
        processes=processes,
        peak_lr=peak_lr,
        min_lr=scaled_lr(stage.min_lr, stage.batch_size),
        base_lr=base_lr,
    )


def memory_advice(plan: StagePlan, bytes_of: BytesPerClip, *, bytes_per_value: int) -> str:
    """Settings to try when a pass of the plan does not fit, with estimates.

    Args:
        bytes_per_value: of the run that does not fit.
    """

    def gib(clips: int, value_bytes: int = bytes_per_value, *, checkpointing: bool = False) -> str:
        return f"{clips * bytes_of(checkpointing, value_bytes) / 2**30:.2f} GiB"

    tried, half = plan.micro_batch, max(1, plan.micro_batch // 2)
    advice = (
        f"tried {tried} clips a pass, about {gib(tried)} of activations; "
        f"train.micro_batch={half} needs about {gib(half)}, train.checkpointing=true about "
        f"{gib(tried, checkpointing=True)}"
    )
    if bytes_per_value > BF16_BYTES:
        advice += f", train.precision=bf16 about {gib(tried, BF16_BYTES)}"
    return advice
