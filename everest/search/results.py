"""The results of a search as a contact sheet, and as a page whose clips play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from everest.figures.clips import clip_card, clip_of
from everest.figures.thumbnails import COLUMNS, Titled, cut, draw_thumbnails
from everest.lists.sample import Sample
from everest.search.feature_file import FeatureFile
from everest.search.neighbors import Neighbor, similarity_texts
from everest.search.queries import Query
from everest.system.files import write_text
from everest.system.text import escape_bytes
from everest.video.reader import VideoError

Result = tuple[Query, list[Neighbor]]


def draw_results(path: Path, results: Sequence[Result], file: FeatureFile) -> None:
    """Write a PNG: each query, and after it its neighbors, as the middle frames of their clips.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    shown: list[Titled] = []
    for query, neighbors in results:
        shown.append((_thumbnail(query.sample), f"query\n{_short(query.sample)}"))
        for neighbor, similarity in zip(neighbors, similarity_texts(neighbors), strict=True):
            sample = file.sample(neighbor.row)
            shown.append((_thumbnail(sample), f"{similarity}\n{_short(sample)}"))
        shown += [(None, "")] * (-len(shown) % COLUMNS)  # each query begins a row
    draw_thumbnails(path, f"nearest in {file.path.name}, with the cosine similarity", shown)


def write_page(path: Path, results: Sequence[Result], file: FeatureFile) -> None:
    """Write a page with the clips of the queries and of their neighbors; it loads no other file.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
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
    # Names of videos come from a user: everything is escaped.
    templates = Environment(
        loader=PackageLoader("everest.search", ""), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template("page.html").render(features=file.path, rows=len(file), queries=queries)
    write_text(path, escape_bytes(page))


def _thumbnail(sample: Sample) -> Any:
    """The middle frame (H, W, 3) uint8; None if the video is unreadable."""
    try:
        return clip_of(sample, most=1)[0][0].numpy()
    except VideoError:
        return None


def _short(sample: Sample) -> str:
    time = "" if sample.start is None else f"\nat {sample.start:.1f} s"
    path = Path(sample.path)
    return cut(f"{path.parent.name}/{path.name}") + time
