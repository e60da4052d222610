"""Types of values in settings: numbers in a range, and the few values that can be written in two ways.

Each type includes the check that pydantic runs. The error of a check states what the value must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from everest.methods.external import must_be

Value = TypeVar("Value")

LARGEST_COUNT: Final = 2**31 - 1  # the largest integer that every library used here accepts
# Our choices, which also bound what the header of a weights file may ask for.
MAX_LENGTH: Final = 2**16  # frames of a clip, pixels of its sides, channels of a layer
MAX_BLOCKS: Final = 1000
MAX_NUMBER: Final = 1e30  # products of a few such numbers are finite
MAX_WORKERS: Final = 1024


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[Value]) -> type[Value]:
    """A section of a recipe: a frozen dataclass that refuses unknown keys and infinite numbers."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def with_hyphens(value: Any) -> Any:
    """A name with hyphens, `vit-b` for `vit_b`; in a mapping, all names among its values."""
    if isinstance(value, dict):
        return {key: with_hyphens(inner) for key, inner in value.items()}
    return value.replace("_", "-") if isinstance(value, str) else value


def _check_name(name: str) -> str:
    """A run is written to a folder of this name, so it must not lead elsewhere."""
    if name.isprintable() and "/" not in name and name not in ("", ".", ".."):
        return name
    raise ValueError("must be the name of a folder, in printable characters and without '/'")


WITH_HYPHENS: Final = BeforeValidator(with_hyphens)
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Depth = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
SmallCount = Annotated[int, Field(ge=1, le=MAX_LENGTH)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NumClasses = Annotated[int, Field(ge=2, le=LARGEST_COUNT)]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Fps = Annotated[float, Field(gt=0, le=10_000)]  # high-speed cameras have no more
Channels = Annotated[tuple[Value, ...], Field(min_length=1, max_length=3)]  # a value for each channel
Ratio = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0, le=1)]  # added to the variance by a norm
RatioBelowOne = Annotated[float, Field(ge=0, lt=1)]
RatioAboveZero = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(gt=0, lt=1)]

RunName = Annotated[str, AfterValidator(_check_name)]
# flat: one sinusoid over the token number, as released; separable: sinusoids of time index, column and row,
# as MVD; interpolated-*: the same of the clips that the weights were trained on, interpolated for other
# clips; learned-separable: a learned vector for each position and one for each time index, as ST-MAE; rotary:
# queries and keys are rotated by time index, row and column, as V-JEPA 2.
Positions = Annotated[
    Literal[
        "flat", "separable", "interpolated-flat", "interpolated-separable", "learned-separable", "rotary"
    ],
    WITH_HYPHENS,
]
# Of the encoder, as image models have them (everest.models.positions.RotaryPositions).
Rotary = Annotated[
    str,
    Field(pattern=r"^(none|dinov3|rope-vit|(eva02|pe):[1-9][0-9]{0,3})$"),
    must_be("none, dinov3, rope-vit, eva02:N or pe:N, such as eva02:16"),
    WITH_HYPHENS,
]
# plain: with GELU; normed-swiglu: SwiGLU with a norm between its Linear layers, as EVA-02.
MlpKind = Annotated[Literal["plain", "swiglu", "normed-swiglu"], WITH_HYPHENS]
Gelu = Literal["exact", "tanh", "quick"]  # tanh: as SigLIP; quick: by a sigmoid, as CLIP
# frames: normalized pixels; differences: their change since the frame before (everest.models.vit).
ModelInput = Literal["frames", "differences"]
AttentionScope = Literal["joint", "slice"]
Pooling = Annotated[Literal["mean", "first", "class-attention", "mean-change"], WITH_HYPHENS]
Size = Annotated[
    SmallCount | tuple[SmallCount, SmallCount],
    BeforeValidator(lambda size: tuple(size) if isinstance(size, list) else size),
    must_be("a number of pixels or [height, width]"),
]
StageName = Literal["pretrain", "finetune"]  # the sections that train a transformer
PrecisionSetting = Literal["auto", "bf16", "fp16", "fp32"]  # of matrix products; all else is float32
# balanced: every class is drawn equally often; sqrt: in proportion to the root of its number of videos.
Sampler = Literal["shuffle", "balanced", "sqrt"]
ClassWeights = Annotated[
    Literal["none", "balanced"] | Annotated[dict[str, Positive], Field(min_length=1)],
    must_be("none, balanced, or weights above 0 of classes, such as {walk: 1, run: 5}"),
]
# embedding: with learned positions and class token; first:N: that and the first N blocks; encoder: all.
Freeze = Annotated[
    str,
    Field(pattern=r"^(none|encoder|embedding|first:[1-9][0-9]{0,3})$"),
    must_be("none, encoder, embedding or first:N, such as first:6"),
]
# The matrices of a block that may have adapters: two of attention, two of the MLP.
LoraLayer = Literal["qkv", "proj", "fc1", "fc2"]
Compile = Annotated[bool | Literal["auto"], must_be("true, false or 'auto'")]
CountOrAuto = Annotated[Count | Literal["auto"], must_be("'auto' or an integer from 1")]
NumWorkers = Annotated[
    Annotated[int, Field(ge=0, le=MAX_WORKERS)] | Literal["auto"],
    must_be(f"'auto' or an integer from 0 to {MAX_WORKERS}"),
]
SaveEvery = Annotated[
    Count | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}(s|min|h)$")],
    must_be("a number of steps or a time such as '30s', '10min', '2h'"),
]
