"""The display matrix of a frame: how the stored picture is turned and mirrored to be upright.

The matrix maps a stored place (x, y) to (a x + c y, b x + d y), with y downward.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
from av import VideoFrame

MATRIX: Final = "DISPLAYMATRIX"  # PyAV's name of nine 32-bit numbers, of which a to d are 16.16
SLANT: Final = 0.02  # of a right angle's sine: our choice, about 1 degree


class Orientation(NamedTuple):
    """What makes a picture upright, in this order."""

    transposed: bool = False  # exchange x and y
    mirrored: bool = False  # exchange left and right
    flipped: bool = False  # exchange top and bottom

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, C) as stored to (H', W', C) as shown, without a copy."""
        shown = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return shown[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def orientation_of(frame: VideoFrame) -> tuple[Orientation, bool]:
    """The nearest orientation at right angles, and whether the frame's matrix is another one."""
    data = frame.side_data.get(MATRIX)
    if data is None:
        return Orientation(), False
    a, b, _, c, d, *_ = (value / 2**16 for value in struct.unpack("=9i", bytes(data)))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)  # what the new x and y are multiples of
    rest = (a, d) if transposed else (b, c)
    is_slanted = max(map(abs, rest)) > SLANT * max(abs(x), abs(y))
    return Orientation(transposed, x < 0, y < 0), is_slanted
