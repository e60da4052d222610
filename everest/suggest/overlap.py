"""Videos of a recipe that pre-training reads although other lists have them for other uses."""

from __future__ import annotations

import os
from collections.abc import Iterable

from everest.config.settings import DataSettings
from everest.lists.samples import read_samples
from everest.lists.stage_source import find_source


def shared_videos(data: DataSettings, keys: Iterable[str]) -> int:
    """Count the videos of `data.pretrain` that the lists `keys` have, too; a link counts as its target.

    Raises:
        DataError: a list cannot be read.
    """
    others = [_paths(data, key) for key in keys if getattr(data, key) is not None]
    return len(_paths(data, "pretrain").intersection(set().union(*others)))


def _paths(data: DataSettings, key: str) -> set[str]:
    source = find_source(data, key, labeled=False)
    samples = read_samples(source.location, root=source.root, labeled=False, may_miss=True).samples
    return {os.path.realpath(sample.path) for sample in samples}
