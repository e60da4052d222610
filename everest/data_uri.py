"""Pictures inside a page, which then needs no file beside itself. H W pixels."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor


def jpeg_uri(picture: Tensor, *, longest: int | None = None) -> str:
    """(H, W, 3) uint8 as an address; made smaller where a side is above `longest` pixels."""
    image, buffer = Image.fromarray(picture.numpy()), io.BytesIO()
    if longest is not None:
        image.thumbnail((longest, longest))
    image.save(buffer, format="JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def png_uri(file: Path) -> str:
    """A PNG file as an address."""
    return _uri("png", file.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
