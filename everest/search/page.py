"""The page of `everest search --page`: the results of queries as playing clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everest.figures.drawing import clip_card, write_page
from everest.search.feature_file import FeatureFile
from everest.search.neighbors import Neighbor, Query


def write_results(page: Path, file: FeatureFile, results: Sequence[tuple[Query, Sequence[Neighbor]]]) -> None:
    """Write a page of queries, each with its neighbors among the rows of a file."""
    cards = [
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
    write_page(page, "search", "page.html", features=file.path, rows=len(file.units), queries=cards)
