"""Feature files without an encoder, for tests of searches."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from everest.system.weights import write_tensors


def write_features(path: Path, features: np.ndarray, videos: Sequence[str], *, windows=()) -> Path:
    """Write rows (N, D) as `everest extract` does.

    Args:
        windows: of each row the number of its video, start and end; without them each row is a video.
    """
    tensors = {"features": torch.from_numpy(features.astype(np.float32))}
    if windows:
        ids, starts, ends = zip(*windows, strict=True)
        seconds = {"starts": torch.tensor(starts).double(), "ends": torch.tensor(ends).double()}
        tensors |= {"video_ids": torch.tensor(ids), **seconds}
    texts = {"videos": json.dumps(list(videos)), "encoding": "{}"} | (
        {"window": "2", "step": "1"} if windows else {}
    )
    write_tensors(path, tensors, metadata=texts)
    return path
