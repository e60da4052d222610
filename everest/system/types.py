"""Types of values that several packages share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 or float64; the comment beside it has the shape
Span = tuple[float, float]  # begin and end in seconds from the first frame; inf: unknown end
