"""The results of a search as a page whose clips play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everest.figures import drawing
from everest.figures.clips import clip_card
from everest.search.feature_file import FeatureFile
from everest.search.neighbors import Neighbor, Query


def write_page(path: Path, results: Sequence[tuple[Query, list[Neighbor]]], file: FeatureFile) -> None:
    """Write a page with the clips of the queries and of their neighbors; it loads no other file."""
    queries = [
        {
            "name": query.name,
            "clip": clip_card(query.sample),
            "neighbors": [
                clip_card(file.sample(each.row))
                | {"similarity": f"{each.similarity:.3f}", "name": file.name(each.row)}
                for each in neighbors
            ],
        }
        for query, neighbors in results
    ]
    rows = len(file.units)
    drawing.write_page(path, "search", "page.html", features=file.path, rows=rows, queries=queries)
