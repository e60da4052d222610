"""The preprocessor_config.json of a transformers folder: how frames are resized, cropped and normalized."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from everest.errors import shorten
from everest.models.clip_spec import ModelSpec
from everest.system.text import validate
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelStatistics

PREPROCESSOR_FILE: Final = "preprocessor_config.json"
PREPROCESSORS: Final = ("video_preprocessor_config.json", PREPROCESSOR_FILE)  # the first that exists is read
BILINEAR: Final = 2  # PIL's number for bilinear, which transformers writes
BYTE_MAX: Final = 255  # the largest value of a pixel before it is rescaled
ROUNDING: Final = 1e-5  # relative tolerance; files may store 1 / 255 with few digits


def preprocessor(spec: ModelSpec) -> dict[str, Any]:
    """Return the content of preprocessor_config.json; `compare_preprocessor` states where frames differ."""
    height, width = spec.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / BYTE_MAX,
        "do_normalize": True,
        "image_mean": list(spec.pixels.mean),
        "image_std": list(spec.pixels.std),
    }


Colors = Annotated[
    tuple[float, float, float],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else (value,) * 3),
]


class Normalization(BaseModel, strict=True):
    """How a preprocessor normalizes frames: (byte * rescale_factor - mean) / std; other keys are ignored."""

    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1 / BYTE_MAX
    do_normalize: bool = True
    image_mean: Colors = IMAGENET_MEAN
    image_std: Colors = IMAGENET_STD


def read_pixel_statistics(content: Mapping[str, Any]) -> PixelStatistics:
    """Return the mean and std by which a preprocessor normalizes frames, for pixels in [0, 1].

    Without a preprocessor, the values are ImageNet's.
    """
    given = {name: value for name, value in content.items() if value is not None}
    values = validate(TypeAdapter(Normalization), given)
    scale = BYTE_MAX * (values.rescale_factor if values.do_rescale else 1.0)
    if math.isclose(scale, 1, rel_tol=ROUNDING):
        scale = 1.0
    mean, std = values.image_mean, values.image_std
    if not values.do_normalize:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return PixelStatistics(mean=tuple(x / scale for x in mean), std=tuple(x / scale for x in std))


def compare_preprocessor(content: Mapping[str, Any], size: tuple[int, int]) -> Iterator[str]:
    """Yield where the frames of a preprocessor differ from everest's, for clips of `size` (height, width)."""
    if not content:
        return
    is_normalized = content.get("do_normalize") is not False
    if is_normalized and None in (content.get("image_mean"), content.get("image_std")):
        yield "its preprocessor states no mean and std: frames are normalized by ImageNet's"
    height, width = size
    expected: dict[str, tuple[Any, ...]] = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "resample": (BILINEAR,),
        "size": (height, {"shortest_edge": height}) if height == width else (),
    }
    settings = {name: content[name] for name in expected if content.get(name) is not None}
    changed = [f"{name} {shorten(value)}" for name, value in settings.items() if value not in expected[name]]
    if changed:
        yield (
            f"its preprocessor resizes frames in another way ({', '.join(changed)}); everest.read_clip reads "
            "the frames of everest"
        )
