"""The settings of a recipe: frozen dataclasses whose attributes are the keys of the YAML.

pydantic validates into these classes (everest.config.recipe), so types, ranges and defaults are stated here
and nowhere else. everest.config.checks has the checks that need two settings at once. A default that names a
table of the EVEREST paper is the value for UCF101, the data set of most of its ablations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field

from everest.config.sizes import BACKBONES, BackboneSize
from everest.config.tokenizer import TokenizerSettings
from everest.config.values import (
    Backbone,
    BatchSize,
    Count,
    CountOrZero,
    Decay,
    Depth,
    Frames,
    HeadName,
    MicroBatch,
    Normalize,
    NotNegative,
    NumClasses,
    Pooling,
    Positions,
    Positive,
    RunName,
    SaveEvery,
    Seed,
    Share,
    ShareBelowOne,
    Side,
    Size,
    Timeout,
    Views,
    Width,
    Workers,
    with_hyphens,
)
from everest.methods.external import external
from everest.methods.ranked import FrameDifference, RedundancyRobust
from everest.methods.strategies import EXTERNAL, AllTokens, Strategy, TubeDropout
from everest.methods.targets import Target

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_SECONDS = {"s": 1, "min": 60, "h": 3600}

PretrainSelection = Annotated[Strategy, Discriminator("strategy"), BeforeValidator(with_hyphens), *EXTERNAL]
FinetuneSelection = Annotated[
    RedundancyRobust | FrameDifference | AllTokens | TubeDropout,
    Discriminator("strategy"),
    BeforeValidator(with_hyphens),
    *EXTERNAL,
]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The videos, and the size of a clip. Lists, shards and folders are relative to `root`, or URLs."""

    __pydantic_config__ = _STRICT
    root: str = "."
    train: str | None = "train.csv"
    val: str | None = None
    test: str | None = "test.csv"
    pretrain: str | None = None  # None: `train`; labels are not read
    classes: str | None = None  # file with one class name per line; None: names of folders or labels
    num_classes: NumClasses | None = None  # None: counted from `classes`, class folders or labels
    # Number of classes of each label column, instead of `num_classes`.
    heads: Annotated[dict[HeadName, NumClasses], Field(min_length=1)] | None = None
    frames: Frames = 16  # EVEREST §5
    size: Size = 224  # EVEREST §5
    flip: bool = True  # EVEREST Tables 7, 8; both stages
    decoder: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    max_bad: Share = 0.01  # our choice: the share of unreadable videos that ends a run
    cache: Literal["none", "memory", "disk"] = "none"  # of decoded frames; our choice

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of a clip in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The transformer. Widths, depth and heads that are None follow from the backbone."""

    __pydantic_config__ = _STRICT
    backbone: Backbone = "vit-b"
    tubelet: tuple[Frames, Side, Side] = (2, 16, 16)  # EVEREST Table 15
    positions: Positions = "flat"  # as released
    class_token: bool = False  # a learned token that attends with the encoded ones, as in ST-MAE; no output
    embedding_layers: Annotated[int, Field(ge=1, le=3)] = 1  # EVEREST Table 15
    pooling: Pooling = "mean"  # of the kept tokens; first: the first token (released program: --use_cls)
    decoder_depth: Depth = 4  # released scripts
    width: Width | None = None
    depth: Depth | None = None
    heads: Width | None = None
    decoder_width: Width | None = None
    decoder_heads: Width | None = None

    @property
    def backbone_size(self) -> BackboneSize:
        """The backbone's sizes, with the sizes that are set here in their place."""
        names = ("width", "depth", "heads", "decoder_width", "decoder_heads")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(BACKBONES[self.backbone], **given)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training loop, the same in every stage. All defaults are our choice."""

    __pydantic_config__ = _STRICT
    seed: Seed = 0
    workers: Workers = 8
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    tf32: bool = False  # faster float32 products on a GPU; the selection is then rounded, too
    save_every: SaveEvery = "10min"
    keep_states: Count = 2
    micro_batch: MicroBatch = "auto"
    nonfinite: Literal["stop", "skip"] = "stop"  # skip: skip such an update, at most ten in a row
    data_timeout: Timeout = 300  # seconds to wait for a process that reads videos
    shard: Literal["none", "full"] = "none"  # full: weights and moments sharded over the GPUs (FSDP2)
    checkpointing: bool = False
    compile: bool = False
    clip_grad: Positive | None = None  # largest gradient norm; released scripts: none
    ema: Decay | None = None  # decay; released scripts: none

    @property
    def save_steps(self) -> int | None:
        """Steps between two saves, or None if `save_every` is a time."""
        return self.save_every if isinstance(self.save_every, int) else None

    @property
    def save_seconds(self) -> int | None:
        """Seconds between two saves, or None if `save_every` is a number of steps."""
        if isinstance(self.save_every, int):
            return None
        unit = self.save_every.lstrip("0123456789")
        return int(self.save_every.removesuffix(unit)) * _SECONDS[unit]


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


TARGETS = {settings.kind: settings for settings in (PixelTargetSettings, TokenTargetSettings)}
TARGET_KEYS = {field.name for settings in TARGETS.values() for field in fields(settings)}


def _without_other_targets(values: Any) -> Any:
    """Drops the keys of other kinds of targets, which a base recipe or an older checkpoint may set."""
    if not isinstance(values, dict):
        return values
    values = {"kind": "pixels"} | values
    settings = TARGETS.get(str(values["kind"]))
    idle = TARGET_KEYS - {field.name for field in fields(settings)} if settings else set()
    return {key: value for key, value in values.items() if key not in idle}


TargetSettings = Annotated[
    PixelTargetSettings | TokenTargetSettings,
    Discriminator("kind"),
    BeforeValidator(_without_other_targets),
    *external(Target, "kind"),
]


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """The self-supervised stage, EVEREST Table 7."""

    __pydantic_config__ = _STRICT
    stride: Count = 4  # Table 7
    sampling: Literal["dense", "segment", "spread"] = "dense"
    flip: bool | None = None  # None: data.flip; the released pre-training never flips
    views_per_decode: Views = 1  # released scripts: num_sample 1
    frame_selection: FrameSelectionSettings = field(default_factory=FrameSelectionSettings)
    selection: PretrainSelection = field(default_factory=RedundancyRobust)
    target: TargetSettings = field(default_factory=PixelTargetSettings)
    epochs: Count = 3200  # Table 7
    warmup_epochs: CountOrZero = 40  # Table 7
    batch_size: BatchSize = 192  # Table 7; of all processes, accumulation included
    base_lr: Positive = 1e-3  # Table 7; lr = base_lr * batch_size / 256
    min_lr: NotNegative = 1e-5  # released scripts; scaled like base_lr
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)  # Table 7
    weight_decay: NotNegative = 0.05  # Table 7

    @property
    def needs_tokenizer(self) -> bool:
        """Whether a tokenizer scores the tokens or gives the targets."""
        return self.selection.needs_tokenizer or self.target.needs_tokenizer


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
    freeze: Literal["none", "encoder"] = "none"
    rand_augment: RandAugmentSettings | None = field(default_factory=RandAugmentSettings)
    crop_area: tuple[Share, Share] = (0.08, 1.0)  # released scripts: smallest and largest share of the frame
    erasing: Share = 0.25  # released scripts: probability of random erasing
    mixup: NotNegative = 0.0  # released scripts; VideoMAE: 0.8
    cutmix: NotNegative = 0.0  # released scripts; VideoMAE: 1.0
    label_smoothing: ShareBelowOne = 0.1  # Table 8
    drop_path: ShareBelowOne = 0.1  # Table 8
    epochs: Count = 100  # Table 8
    warmup_epochs: CountOrZero = 5  # Table 8
    batch_size: BatchSize = 128  # Table 8; of all processes, accumulation included
    base_lr: Positive = 1e-3  # Table 8; lr = base_lr * batch_size / 256
    min_lr: NotNegative = 1e-6  # released scripts; scaled like base_lr
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)  # Table 8
    weight_decay: NotNegative = 0.05  # Table 8
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75  # Table 8


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Multi-view evaluation, EVEREST Table 8: every video is evaluated in clips x crops views."""

    __pydantic_config__ = _STRICT
    clips: Views = 5  # Table 8
    crops: Views = 3  # Table 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one data set and method; `pretrain`, `finetune` and `eval` read the same recipe."""

    __pydantic_config__ = _STRICT
    name: RunName
    summary: str = ""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    tokenizer: TokenizerSettings | None = None  # None: the method has no tokenizer
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
