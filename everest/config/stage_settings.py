"""The settings of the stages: the sections `pretrain`, `finetune` and `eval` of a recipe.

As in everest.config.settings, a default that names a table of the EVEREST paper is the value for UCF101.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field

from everest.config.values import (
    BatchSize,
    Count,
    CountOrZero,
    Freeze,
    LoraLayer,
    Normalize,
    NotNegative,
    NumViews,
    Positive,
    Sampler,
    Share,
    ShareBelowOne,
    Width,
    WidthOrZero,
    check_class_weights,
    with_hyphens,
)
from everest.methods.external import external
from everest.methods.ranked import Drawn, FrameDifference, RedundancyRobust
from everest.methods.strategies import EXTERNAL, AllTokens, Strategy, TubeDropout
from everest.methods.targets import Target

BestMetric = Annotated[
    Literal["top1", "mean_class_accuracy", "macro_f1", "map", "mae", "loss"],
    BeforeValidator(lambda value: value.replace("-", "_") if isinstance(value, str) else value),
]
ClassWeights = Annotated[
    Literal["none", "balanced"] | dict[str, Positive], BeforeValidator(check_class_weights)
]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

PretrainSelection = Annotated[Strategy, Discriminator("strategy"), BeforeValidator(with_hyphens), *EXTERNAL]
FinetuneSelection = Annotated[
    RedundancyRobust | Drawn | FrameDifference | AllTokens | TubeDropout,
    Discriminator("strategy"),
    BeforeValidator(with_hyphens),
    *EXTERNAL,
]


@dataclass(frozen=True, kw_only=True)
class FrameSelectionSettings:
    """Information-intensive frame selection, EVEREST §4.2."""

    __pydantic_config__ = _STRICT
    alpha: Annotated[float, Field(ge=1, le=100)] = 1.0  # candidates: alpha times the clip's frames; Table 13
    recompute: bool = False  # measure the drawn slices again; our choice, not specified in the paper


@dataclass(frozen=True, kw_only=True)
class PixelTargetSettings:
    """Predict the pixels of the target tokens."""

    __pydantic_config__ = _STRICT
    needs_tokenizer: ClassVar[bool] = False
    kind: Literal["pixels"] = "pixels"
    cache: str | None = None  # folder of `everest prepare tokens`, for a selection that needs a tokenizer
    normalize: Normalize = True  # per tubelet and channel, as released; token: as ST-MAE
    frames: Literal["all", "half"] = "all"  # half: one frame of each tubelet, as ST-MAE


@dataclass(frozen=True, kw_only=True)
class TokenTargetSettings:
    """Predict the codes that the recipe's tokenizer gives the target tokens, LVMAE §3.3."""

    __pydantic_config__ = _STRICT
    needs_tokenizer: ClassVar[bool] = True
    kind: Literal["tokens"] = "tokens"
    cache: str | None = None  # folder of `everest prepare tokens`, read instead of running the tokenizer
    space: Literal["values", "soft", "codes"] = "values"  # LVMAE eq. 2


@dataclass(frozen=True, kw_only=True)
class FeatureTargetSettings:
    """Predict the features that a frozen teacher gives the target tokens."""

    __pydantic_config__ = _STRICT
    needs_tokenizer: ClassVar[bool] = False
    kind: Literal["features"] = "features"
    teacher: Annotated[str, Field(min_length=1)]  # a run folder, a .safetensors file, hf:NAME or timm:NAME
    layers: Literal["last"] = "last"  # its output, after its last norm
    cache: str | None = None  # folder of `everest prepare tokens`, read instead of running the teacher


TARGETS = {
    settings.kind: settings for settings in (PixelTargetSettings, TokenTargetSettings, FeatureTargetSettings)
}
TARGET_KEYS = {field.name for settings in TARGETS.values() for field in fields(settings)}


def _without_other_targets(values: Any) -> Any:
    """Drops the keys of other kinds of targets, which a base recipe may set."""
    if not isinstance(values, dict):
        return values
    values = {"kind": "pixels"} | values
    settings = TARGETS.get(str(values["kind"]))
    idle = TARGET_KEYS - {field.name for field in fields(settings)} if settings else set()
    return {key: value for key, value in values.items() if key not in idle}


TargetSettings = Annotated[
    PixelTargetSettings | TokenTargetSettings | FeatureTargetSettings,
    Discriminator("kind"),
    BeforeValidator(_without_other_targets),
    *external(Target, "kind"),
]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters of a frozen encoder (Hu et al. 2021, LoRA): W + alpha / rank * B A."""

    __pydantic_config__ = _STRICT
    rank: WidthOrZero = 0  # 0: none, the encoder itself is trained
    alpha: Positive = 16  # alpha / rank scales the adapters
    dropout: ShareBelowOne = 0.0  # of the input channels of A, in each pass
    layers: Annotated[tuple[LoraLayer, ...], Field(min_length=1)] = ("qkv", "proj")  # our choice: attention


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Measurements of the encoder during pre-training (everest.probes.probing); they change no weights."""

    __pydantic_config__ = _STRICT
    every: CountOrZero = 0  # epochs from one probe to the next; 0: none
    list: str | None = None  # of labeled videos, relative to data.root; None: measures without labels
    metric: Literal["knn", "linear"] = "knn"  # linear: logistic regression, in addition to k-NN


@dataclass(frozen=True, kw_only=True)
class ViewsSettings:
    """Learning between views (everest.models.views), without a decoder."""

    __pydantic_config__ = _STRICT
    number: Annotated[int, Field(ge=2, le=64)] = 2  # clips of each video, each with its own window and crop
    # Smallest and largest share of the frame that a view shows; None: the multi-scale crops of the released
    # pre-training, 0.4 to 1 of the largest square.
    crop_area: tuple[Share, Share] | None = None
    loss: Literal["contrast", "sigreg"] = "contrast"  # InfoNCE over the clips of a step, or LeJEPA's
    temperature: Annotated[float, Field(ge=1e-3, le=100)] = 0.1  # of contrast; our choice
    sigreg_weight: Share = 0.05  # LeJEPA's lambda; the weight of the invariance is 1 - sigreg_weight
    hidden: Width = 512  # of the projector; our choice
    width: Width = 128  # of the projections that are compared; our choice


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """The self-supervised stage, EVEREST Table 7."""

    __pydantic_config__ = _STRICT
    objective: Literal["pixels", "views"] = "pixels"  # pixels: of `target`
    stride: Count = 4  # Table 7
    sampling: Literal["dense", "segment", "spread"] = "dense"
    flip: bool | None = None  # None: data.flip; the released pre-training never flips
    views_per_decode: NumViews = 1  # released scripts: num_sample 1
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)
    selection: PretrainSelection = field(default_factory=RedundancyRobust)
    target: TargetSettings = field(default_factory=PixelTargetSettings)
    views: ViewsSettings = field(default_factory=ViewsSettings)  # with objective: views
    camera_motion: NotNegative = 0.0  # weight of everest.methods.camera_task in the loss
    lora: LoraSettings = field(default_factory=LoraSettings)
    epochs: Count | None = 3200  # Table 7
    steps: Count | None = None  # updates, instead of epochs
    warmup_epochs: CountOrZero = 40  # Table 7
    warmup_steps: CountOrZero | None = None  # with `steps`; None: a twentieth of them, our choice
    batch_size: BatchSize = 192  # Table 7; of all processes, accumulation included
    base_lr: Positive = 1e-3  # Table 7; lr = base_lr * batch_size / 256
    min_lr: NotNegative = 1e-5  # released scripts; scaled like base_lr
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)  # Table 7
    weight_decay: NotNegative = 0.05  # Table 7
    # For pre-training that continues from trained weights: learning rate of a block relative to the next one,
    # and of the encoder relative to the decoder.
    layer_decay: LayerDecay = 1.0
    encoder_lr_scale: Positive = 1.0  # learning rate of the encoder relative to the decoder
    probe: ProbeSettings = field(default_factory=ProbeSettings)

    @property
    def clips_per_video(self) -> int:
        """The clips that are cut from a video when it is read."""
        return self.views.number if self.objective == "views" else self.views_per_decode

    @property
    def teacher(self) -> str | None:
        """The name of the frozen encoder whose features are predicted."""
        target = self.target if self.objective == "pixels" else None
        return target.teacher if isinstance(target, FeatureTargetSettings) else None

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a tokenizer scores the tokens or gives the targets."""
        targets = self.objective == "pixels" and self.target.needs_tokenizer
        return self.selection.needs_tokenizer or targets


@dataclass(frozen=True, kw_only=True)
class RandAugmentSettings:
    """RandAugment (Cubuk et al. 2020): `ops` random operations, the strength drawn around `magnitude`."""

    __pydantic_config__ = _STRICT
    magnitude: Annotated[float, Field(ge=0, le=10)] = 9  # EVEREST Table 8; released scripts: 7
    std: NotNegative = 0.5  # EVEREST Table 8
    ops: Annotated[int, Field(ge=1, le=100)] = 4  # released scripts: n4


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The supervised stage, EVEREST Table 8. Its selection has no targets: all kept tokens are encoded."""

    __pydantic_config__ = _STRICT
    stride: Count = 4  # Table 8
    sampling: Literal["dense", "segment", "spread"] = "dense"
    selection: FinetuneSelection = field(
        default_factory=lambda: RedundancyRobust(keep_ratio=0.6, visible_ratio=None)  # Table 8
    )
    sampler: Sampler = "shuffle"  # the order of the videos; our choice
    freeze: Freeze = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    rand_augment: RandAugmentSettings | None = field(default_factory=RandAugmentSettings)
    crop_area: tuple[Share, Share] = (0.08, 1.0)  # released scripts: smallest and largest share of the frame
    erasing: Share = 0.25  # released scripts: probability of random erasing
    mixup: NotNegative = 0.0  # released scripts; VideoMAE: 0.8
    cutmix: NotNegative = 0.0  # released scripts; VideoMAE: 1.0
    label_smoothing: ShareBelowOne = 0.1  # Table 8; numbers have none
    # Weights of the classes in the loss. balanced: a class of few videos counts as much as one of many.
    class_weights: ClassWeights = "none"
    # The metric of data.val that chooses the best weights; None: top1, map, mae, or loss for mixed heads;
    # mean_class_accuracy with a class `background`.
    best: BestMetric | None = None
    drop_path: ShareBelowOne = 0.1  # Table 8
    epochs: Count | None = 100  # Table 8
    steps: Count | None = None  # updates, instead of epochs
    warmup_epochs: CountOrZero = 5  # Table 8
    warmup_steps: CountOrZero | None = None  # with `steps`; None: a twentieth of them, our choice
    patience: Count | None = None  # validations without a new best after which a run ends; None: never
    batch_size: BatchSize = 128  # Table 8; of all processes, accumulation included
    base_lr: Positive = 1e-3  # Table 8; lr = base_lr * batch_size / 256
    min_lr: NotNegative = 1e-6  # released scripts; scaled like base_lr
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)  # Table 8
    weight_decay: NotNegative = 0.05  # Table 8
    layer_decay: LayerDecay = 0.75  # Table 8

    def frozen_layers(self, depth: int) -> int:
        """The number of layers that `freeze` names: the embedding is the first, then come `depth` blocks."""
        named = {"none": 0, "embedding": 1, "encoder": 1 + depth}
        return named[self.freeze] if self.freeze in named else 1 + int(self.freeze.removeprefix("first:"))


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Multi-view evaluation, EVEREST Table 8: every video is evaluated in clips x crops views."""

    __pydantic_config__ = _STRICT
    clips: NumViews = 5  # Table 8
    crops: NumViews = 3  # Table 8
