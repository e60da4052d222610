"""The settings of the stages: the sections `pretrain`, `finetune` and `eval` of a recipe.

`ScheduleSettings` and `TransformerSettings` declare what stages share; each stage has its own defaults.

As in everest.config.settings, a default that names a table of the EVEREST paper is the value for UCF101.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Discriminator, Field

from everest.config import values as v
from everest.config.values import StageName, settings
from everest.methods.strategies import (
    EXTERNAL,
    STRATEGIES,
    FinetuneStrategy,
    RedundancyRobust,
    Sampled,
    ShippedStrategy,
)
from everest.methods.targets import START, AnyTarget, FeatureTargets, PixelTargets, ShippedTarget
from everest.system.weights_header import ClipSettings

BestMetric = Annotated[
    Literal["top1", "mean_class_accuracy", "macro_f1", "map", "mae", "loss"],
    BeforeValidator(lambda value: value.replace("-", "_") if isinstance(value, str) else value),
]

STAGES: Final[tuple[StageName, ...]] = get_args(StageName)


PretrainSelection = Annotated[ShippedStrategy, Discriminator("strategy"), v.WITH_HYPHENS, *EXTERNAL]
FinetuneSelection = Annotated[FinetuneStrategy, Discriminator("strategy"), v.WITH_HYPHENS, *EXTERNAL]


@settings
class ScheduleSettings:
    """The keys that every stage has, the tokenizer's included."""

    epochs: v.Count | None  # passes over the videos
    steps: v.Count | None = None  # updates, instead of epochs
    warmup_epochs: v.CountOrZero  # epochs of a rising learning rate
    warmup_steps: v.CountOrZero | None = None  # None: a twentieth of `steps`, our choice
    batch_size: v.Count  # of all processes, accumulation included
    betas: tuple[v.RatioBelowOne, v.RatioBelowOne]  # decay rates of AdamW's two moments
    one_micro_batch: ClassVar[bool] = False  # whether a loss compares all clips of a step

    @property
    def mixes_pairs(self) -> bool:
        """Whether the clips of a micro-batch are mixed in pairs."""
        return False

    def frozen_layers(self, depth: int) -> int:
        """How many of the first layers need no backward pass: the embedding, then each of `depth` blocks."""
        return 0

    def clip_settings(self, fps: float | None) -> ClipSettings | None:
        """How the stage reads clips, for the header of its weights; None: not stored."""
        return None


@settings
class TransformerSettings(ScheduleSettings):
    """The keys that pre-training and fine-tuning share, EVEREST Tables 7 and 8."""

    base_lr: v.Positive = 1e-3  # Tables 7, 8; lr = base_lr * batch_size / 256
    min_lr: v.NotNegative  # scaled like base_lr
    weight_decay: v.NotNegative = 0.05  # Tables 7, 8
    stride: v.Count = 4  # Tables 7, 8
    sampling: Literal["dense", "segment", "spread"] = "dense"

    @property
    def lr_range(self) -> tuple[float, float]:
        """The highest learning rate (EVEREST, appendix A), and that of the last step."""
        return self.base_lr * self.batch_size / 256, self.min_lr * self.batch_size / 256

    def clip_settings(self, fps: float | None) -> ClipSettings:
        clip: ClipSettings = {"stride": self.stride, "sampling": self.sampling}
        return clip if fps is None else {**clip, "fps": fps}


@settings
class FrameSelectionSettings:
    """Information-intensive frame selection, EVEREST §4.2."""

    alpha: Annotated[float, Field(ge=1, le=100)] = 1.0  # candidates: alpha times the clip's frames; Table 13


@settings
class LoraSettings:
    """Low-rank adapters of a frozen encoder (Hu et al. 2021, LoRA): W + alpha / rank * B A."""

    rank: v.CountOrZero = 0  # 0: none, the encoder itself is trained
    alpha: v.Positive = 16  # alpha / rank scales the adapters
    dropout: v.RatioBelowOne = 0.0  # fraction of the input channels of A that dropout zeroes in a step
    layers: Annotated[tuple[v.LoraLayer, ...], Field(min_length=1)] = ("qkv", "proj")  # our choice: attention


@settings
class ViewsSettings:
    """Learning between views by contrast (everest.models.view_model), without a decoder."""

    number: Annotated[int, Field(ge=2)] = 2  # clips of each video, each with its own window and crop
    # Smallest and largest fraction of the frame that a view shows; None: the multi-scale crops of the
    # released pre-training, 0.4 to 1 of the largest square.
    crop_area: tuple[v.Ratio, v.Ratio] | None = None
    temperature: v.Positive = 0.1  # our choice


@settings
class CommonPretrainSettings(TransformerSettings):
    """The self-supervised stage, EVEREST Table 7; the objectives have further keys."""

    epochs: v.Count | None = 3200  # Table 7
    warmup_epochs: v.CountOrZero = 40  # Table 7
    batch_size: v.Count = 192  # Table 7; of all processes, accumulation included
    betas: tuple[v.RatioBelowOne, v.RatioBelowOne] = (0.9, 0.95)  # Table 7
    min_lr: v.NotNegative = 1e-5  # released scripts; scaled like base_lr
    layer_decay: ClassVar[float] = 1.0
    objective: Literal["reconstruct", "views"]
    flip: bool | None = None  # None: data.flip; the released pre-training never flips
    selection: PretrainSelection = field(default_factory=RedundancyRobust)
    camera_motion: v.NotNegative = 0.0  # weight in the loss of the task of everest.methods.camera
    # Learning rate of the encoder relative to the decoder, for a run that continues from trained weights.
    encoder_lr_scale: v.Positive = 1.0


@settings
class AutoencoderSettings(CommonPretrainSettings):
    """Pre-training that predicts the `target` of hidden tokens."""

    objective: Literal["reconstruct"] = "reconstruct"
    views_per_decode: v.Count = 1  # released scripts: num_sample 1
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)
    target: AnyTarget = field(default_factory=PixelTargets)

    @property
    def teacher(self) -> str | None:
        """The name of the frozen encoder whose features are predicted."""
        return self.target.teacher if isinstance(self.target, FeatureTargets) else None

    @property
    def cache(self) -> str | None:
        """The folder of stored targets."""
        return self.target.cache

    @property
    def has_decoder(self) -> bool:
        """Whether hidden tokens are predicted; otherwise the features of the encoded ones."""
        return self.teacher != START

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a tokenizer scores the tokens or gives the targets."""
        return self.selection.needs_tokenizer or self.target.needs_tokenizer


@settings
class ViewPretrainSettings(CommonPretrainSettings):
    """Pre-training that compares several clips of each video, and predicts nothing."""

    objective: Literal["views"] = "views"
    selection: PretrainSelection = field(
        default_factory=lambda: Sampled(keep_ratio=0.25, visible_ratio=None, uniform=0.5)  # our choice
    )
    views: ViewsSettings = field(default_factory=ViewsSettings)
    one_micro_batch: ClassVar[bool] = True
    frame_selection: ClassVar[FrameSelectionSettings] = FrameSelectionSettings()  # all frames
    has_decoder: ClassVar[bool] = False
    teacher: ClassVar[None] = None
    cache: ClassVar[None] = None
    needs_tokenizer: ClassVar[bool] = False

    @property
    def views_per_decode(self) -> int:
        return self.views.number


PretrainSettings = AutoencoderSettings | ViewPretrainSettings
PretrainSection = Annotated[PretrainSettings, Discriminator("objective")]


@settings
class RandAugmentSettings:
    """RandAugment (Cubuk et al. 2020): `ops` random operations, the strength drawn around `magnitude`."""

    magnitude: Annotated[float, Field(ge=0, le=10)] = 9  # EVEREST Table 8; released scripts: 7
    std: v.NotNegative = 0.5  # EVEREST Table 8
    ops: v.Count = 4  # released scripts: n4


@settings
class FinetuneSettings(TransformerSettings):
    """The supervised stage, EVEREST Table 8. Its selection has no targets: all kept tokens are encoded."""

    epochs: v.Count | None = 100  # Table 8
    warmup_epochs: v.CountOrZero = 5  # Table 8
    batch_size: v.Count = 128  # Table 8; of all processes, accumulation included
    betas: tuple[v.RatioBelowOne, v.RatioBelowOne] = (0.9, 0.999)  # Table 8
    min_lr: v.NotNegative = 1e-6  # released scripts; scaled like base_lr
    layer_decay: v.RatioAboveZero = 0.75  # learning rate of a block relative to the next one; Table 8
    selection: FinetuneSelection = field(
        default_factory=lambda: RedundancyRobust(keep_ratio=0.6, visible_ratio=None)  # Table 8
    )
    sampler: v.Sampler = "shuffle"  # the order of the videos; our choice
    freeze: v.Freeze = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    rand_augment: RandAugmentSettings | None = field(default_factory=RandAugmentSettings)
    # Smallest and largest fraction of the frame in a random crop.
    crop_area: tuple[v.Ratio, v.Ratio] = (0.08, 1.0)  # released scripts
    erasing: v.Ratio = 0.25  # released scripts: probability of random erasing
    mixup: v.NotNegative = 0.0  # released scripts; VideoMAE: 0.8
    cutmix: v.NotNegative = 0.0  # released scripts; VideoMAE: 1.0
    label_smoothing: v.RatioBelowOne = 0.1  # Table 8; numbers have none
    # Weights of the classes in the loss. balanced: a class of few videos counts as much as one of many.
    class_weights: v.ClassWeights = "none"
    # The metric of data.val that chooses the best weights; None: top1, map, mae, or loss for mixed heads;
    # mean_class_accuracy with a class `background`.
    best: BestMetric | None = None
    drop_path: v.RatioBelowOne = 0.1  # Table 8
    patience: v.Count | None = None  # validations without a new best after which a run ends; None: never
    views_per_decode: ClassVar[int] = 1
    encoder_lr_scale: ClassVar[float] = 1.0

    @property
    def mixes_pairs(self) -> bool:
        return bool(self.mixup or self.cutmix)

    @property
    def adapters(self) -> LoraSettings | None:
        """The adapters that are trained in place of the encoder; None: the encoder is trained."""
        return self.lora if self.lora.rank else None

    def frozen_layers(self, depth: int) -> int:
        if self.lora.rank:
            return 1  # all blocks have adapters
        named = {"none": 0, "embedding": 1, "encoder": 1 + depth}
        return named[self.freeze] if self.freeze in named else 1 + int(self.freeze.removeprefix("first:"))

    @property
    def needs_init(self) -> tuple[str, str] | None:
        """The setting that needs trained weights, and the setting to use without them; None: none does."""
        if self.lora.rank:
            return f"finetune.lora.rank={self.lora.rank}", "finetune.lora.rank=0"
        is_partial = self.freeze not in ("none", "embedding")
        return (f"finetune.freeze={self.freeze}", "finetune.freeze=none") if is_partial else None


@settings
class EvalSettings:
    """Multi-view evaluation, EVEREST Table 8: every video is evaluated in clips x crops views."""

    clips: v.Count = 5  # Table 8
    crops: v.Count = 3  # Table 8


KeyPath = tuple[str, ...]  # the keys that lead to a value in a recipe

SELECTION_KEY: Final = ("pretrain", "selection")
VIEWS_KEY: Final = ("pretrain", "views")


class Variants(NamedTuple):
    """Settings of a section that exclude each other: the key that names one of them, and their classes."""

    tag: str
    classes: Mapping[str, type]


def _variants(tag: str, union: Any) -> Variants:
    return Variants(tag, {getattr(each, tag): each for each in get_args(union)})


SECTION_VARIANTS: Final = {  # by section, an outer one first
    ("pretrain",): _variants("objective", PretrainSettings),
    ("pretrain", "target"): _variants("kind", ShippedTarget),
    **{(stage, "selection"): Variants("strategy", STRATEGIES) for stage in STAGES},
}
