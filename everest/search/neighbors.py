"""The rows that are most similar to a query: exact nearest neighbors by cosine similarity.

N rows of a file, Q vectors of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from everest.errors import RecipeError
from everest.search.feature_file import FeatureFile
from everest.search.queries import Query

MOST_DIGITS: Final = 7  # of a similarity, which is computed in float32


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A row with its similarity to the nearest vector of a query."""

    row: int
    similarity: float  # cosine, from -1 to 1


def nearest(file: FeatureFile, query: Query, *, top: int, own: bool = False) -> list[Neighbor]:
    """Find up to `top` rows in the order of their similarity; equal ones in the order of the file.

    Of windows of one video that overlap, only the most similar one is returned.

    Args:
        own: also return rows of the video that the query is from, but not the query itself.
    """
    if top < 1:
        raise RecipeError(f"top={top}: must be at least 1")
    if query.vectors.shape[1] != file.units.shape[1]:
        raise RecipeError(
            f"{query.name}: {query.vectors.shape[1]} features, {file.units.shape[1]} in {file.path}"
        )
    similarity = np.empty(len(file), np.float32)
    for rows, block in file.blocks():
        similarity[rows] = (block @ query.vectors.T).max(axis=1)
    free = np.ones(len(file), dtype=bool)  # rows that may still be chosen
    free[list(query.rows) if own else file.rows_of_file(query.sample.path)] = False
    found: list[Neighbor] = []
    for row in np.argsort(-similarity, kind="stable").tolist():
        if len(found) == top:
            break
        if free[row]:
            found.append(Neighbor(row=row, similarity=float(similarity[row])))
            free &= ~file.overlapping(row)
    return found


def similarity_texts(neighbors: Sequence[Neighbor]) -> list[str]:
    """Similarities with three or more digits, so that different ones differ."""
    values = [neighbor.similarity for neighbor in neighbors]
    by_digits = ([f"{value:.{digits}f}" for value in values] for digits in range(3, MOST_DIGITS))
    full = [f"{value:.{MOST_DIGITS}f}" for value in values]
    return next((texts for texts in by_digits if len(set(texts)) == len(set(full))), full)


def to_dict(query: Query, neighbors: list[Neighbor], file: FeatureFile) -> dict[str, Any]:
    """A query with its neighbors, as `everest search --json`."""
    rows = []
    for rank, neighbor in enumerate(neighbors, start=1):
        sample = file.sample(neighbor.row)
        rows.append(
            {
                "rank": rank,
                "similarity": round(neighbor.similarity, MOST_DIGITS),
                "name": file.name(neighbor.row),
                "video": sample.path,
                "start": sample.start,
                "end": sample.end,
                "row": neighbor.row,
            }
        )
    return {"query": query.name, "neighbors": rows}
