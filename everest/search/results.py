"""The results of a search as a page whose clips play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everest.figures import drawing
from everest.figures.clips import clip_card
from everest.search.feature_file import FeatureFile
from everest.search.neighbors import Neighbor, similarity_texts
from everest.search.queries import Query

Result = tuple[Query, list[Neighbor]]


def write_page(path: Path, results: Sequence[Result], file: FeatureFile) -> None:
    """Write a page with the clips of the queries and of their neighbors; it loads no other file."""
    queries = [
        {
            "name": query.name,
            "clip": clip_card(query.sample),
            "neighbors": [
                {
                    **clip_card(file.sample(neighbor.row)),
                    "similarity": similarity,
                    "name": file.name(neighbor.row),
                }
                for neighbor, similarity in zip(neighbors, similarity_texts(neighbors), strict=True)
            ],
        }
        for query, neighbors in results
    ]
    drawing.write_page(path, "search", "page.html", features=file.path, rows=len(file), queries=queries)
