"""Near-duplicates: rows of different videos whose features are almost equal.

`everest prepare check` finds files with the same bytes or the same frames. This finds copies that were
encoded again, cropped a little or shifted in time. A group is one row, which is kept, and the rows that are
similar to it. Rows that are similar to a copy only are not in its group: chains do not join different scenes.

N rows of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from everest.errors import RecipeError
from everest.lists.header import GROUP_COLUMN, SEGMENT_COLUMNS
from everest.lists.writing import refuse_unlistable, time_text, write_list
from everest.search.feature_file import FeatureFile, Floats
from everest.search.neighbors import Neighbor
from everest.system.files import write_table

THRESHOLD: Final = 0.985  # our choice: the best F1 on one set of clips, benchmarks/results/searching.json
ROUNDED: Final = 1e-6  # of similarities in float32, so that equal rows reach a threshold of 1
ROWS: Final = 256  # whose similarities to all others are held at once; our choice: 100 MB for 100,000 rows


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Rows that show almost the same: the first in the order of the file, and its copies."""

    kept: int
    copies: tuple[Neighbor, ...]  # later rows, each with its similarity to the first


def find_duplicates(file: FeatureFile, threshold: float, *, own: bool = False) -> list[DuplicateGroup]:
    """Find the groups of rows whose cosine similarity to their first row is at least `threshold`.

    Args:
        own: also compare rows of the same video that do not overlap.
    Raises:
        RecipeError: the threshold is no cosine between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise RecipeError(f"--threshold {threshold:g}: must be more than 0 and at most 1")
    free, groups = np.ones(len(file), dtype=bool), []
    scale = _scale(file)
    for first in range(0, len(file), ROWS):
        rows = file.units[first : first + ROWS] * scale[first : first + ROWS, None]
        similarity = np.zeros((len(rows), len(file)), np.float32)
        for later, block in file.blocks(first):
            similarity[:, later] = rows @ block.T * scale[later]
        similar = similarity >= threshold - ROUNDED
        for number in np.flatnonzero(similar.sum(axis=1) > 1).tolist():
            kept = first + number
            if not free[kept]:
                continue
            alike = free & similar[number]
            alike[: kept + 1] = False
            alike &= ~file.overlapping(kept) if own else file.sources != file.sources[kept]
            copies = np.flatnonzero(alike).tolist()
            if copies:
                free[alike] = False
                found = (Neighbor(row=row, similarity=float(similarity[number, row])) for row in copies)
                groups.append(DuplicateGroup(kept=kept, copies=tuple(found)))
    return groups


def _scale(file: FeatureFile) -> Floats:
    """Factors (N,) that give the unit rows, which are rounded to float16, a length of 1."""
    norms = np.concatenate([np.linalg.norm(block, axis=1) for _, block in file.blocks()])
    return (1 / np.where(norms > 0, norms, 1)).astype(np.float32)


def to_dict(group: DuplicateGroup, file: FeatureFile) -> dict[str, Any]:
    """A group as `everest curate duplicates --json`."""
    copies = [{"name": file.name(each.row), "similarity": round(each.similarity, 4)} for each in group.copies]
    return {"kept": file.name(group.kept), "copies": copies}


def write_groups(path: Path, groups: Sequence[DuplicateGroup], file: FeatureFile) -> None:
    """Write a list of all rows in groups: path, times, the name of the first row, the similarity to it.

    Raises:
        DataError: a list cannot hold one of the paths.
        EnvironmentProblem: the file cannot be written.
    """
    table = [["path", *SEGMENT_COLUMNS, GROUP_COLUMN, "similarity"]]
    for group in groups:
        for row, similarity in ((group.kept, 1.0), *((each.row, each.similarity) for each in group.copies)):
            sample = file.listed(row)
            refuse_unlistable([sample])
            cells = [time_text(getattr(sample, name)) for name in SEGMENT_COLUMNS]
            table.append([sample.path, *cells, file.name(group.kept), f"{similarity:.4f}"])
    write_table(path, table, quoted=True)


def write_kept(path: Path, groups: Sequence[DuplicateGroup], file: FeatureFile) -> None:
    """Write a list of the rows that are no copies; errors as of `write_groups`."""
    copies = {each.row for group in groups for each in group.copies}
    samples = [file.listed(row) for row in range(len(file)) if row not in copies]
    write_list(path, samples, root=path.parent.absolute())
