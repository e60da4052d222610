"""Images as data URIs, for pages of one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from everest.figures.mask_view import in_colors


def jpeg_uri(image_pixels: Tensor, *, longest: int | None = None) -> str:
    """Return (H, W, C) uint8 as a data URI, scaled down if a side is above `longest` pixels."""
    image, buffer = Image.fromarray(in_colors(image_pixels).contiguous().numpy()), io.BytesIO()
    if longest is not None:
        image.thumbnail((longest, longest))
    image.save(buffer, format="JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def png_uri(file: Path) -> str:
    """Return a PNG file as a data URI."""
    return _uri("png", file.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
