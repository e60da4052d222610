"""The rows that are most similar to a query: exact nearest neighbors by cosine similarity.

N rows of a file, Q vectors of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from everest.errors import RecipeError
from everest.search.feature_file import FeatureFile
from everest.search.queries import Query


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A row with its similarity to the nearest vector of a query."""

    row: int
    similarity: float  # cosine, from -1 to 1


def nearest(file: FeatureFile, query: Query, *, top: int) -> list[Neighbor]:
    """Find up to `top` rows in the order of their similarity; equal ones in the order of the file.

    Rows of the video that the query is from are left out. Of windows of one video that overlap, only the most
    similar one is returned.
    """
    if query.vectors.shape[1] != file.units.shape[1]:
        raise RecipeError(
            f"{query.name}: {query.vectors.shape[1]} features, {file.units.shape[1]} in {file.path}"
        )
    similarity = (file.units @ query.vectors.T).max(axis=1)  # (N,)
    free = np.ones(len(similarity), dtype=bool)  # rows that may still be chosen
    free[file.rows_of_file(query.sample.path)] = False
    neighbors: list[Neighbor] = []
    for row in np.argsort(-similarity, kind="stable").tolist():
        if len(neighbors) == top:
            break
        if free[row]:
            neighbors.append(Neighbor(row=row, similarity=float(similarity[row])))
            free[file.overlapping(row)] = False
    return neighbors


def to_dict(query: Query, neighbors: list[Neighbor], file: FeatureFile) -> dict[str, Any]:
    """A query with its neighbors, as `everest search --json`."""
    rows = []
    for rank, neighbor in enumerate(neighbors, start=1):
        sample = file.sample(neighbor.row)
        rows.append(
            {
                "rank": rank,
                "similarity": round(neighbor.similarity, 6),
                "name": file.name(neighbor.row),
                "video": sample.path,
                "start": sample.start,
                "end": sample.end,
                "row": neighbor.row,
            }
        )
    return {"query": query.name, "neighbors": rows}
