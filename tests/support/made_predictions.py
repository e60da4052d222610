"""Predictions that were made up, for tests of their metrics and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from everest.config.heads import Head
from everest.metrics.predictions import Predictions


def predictions_of(labels: Sequence[Any], outputs: Any, *heads: Head) -> Predictions:
    """Of videos 0, 1, ...; a label is a tuple with one for each head, or that of the only head."""
    return Predictions(
        videos=[str(number) for number in range(len(labels))],
        labels=[label if isinstance(label, tuple) and len(heads) > 1 else (label,) for label in labels],
        outputs=np.asarray(outputs, dtype=np.float32),
        skipped=[],
        heads=heads,
    )
