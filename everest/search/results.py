"""The results of a search as a contact sheet, and as a page whose clips play.

F frames, H W pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from everest.data.crops import resize
from everest.data.footage import footage_of
from everest.figures.thumbnails import COLUMNS, Titled, cut, draw_thumbnails
from everest.lists.sample import Sample
from everest.search.feature_file import FeatureFile
from everest.search.neighbors import Neighbor, similarity_texts
from everest.search.queries import Query
from everest.system.files import write_text
from everest.system.text import escape_bytes
from everest.video.reader import VideoError, frames_in_order, probe
from everest.video.writer import write_video

FPS: Final = 12.0  # our choice: frames per second of a clip on the page, at most
MOST: Final = 96  # our choice: frames of a clip; of a longer one, the middle
SIDE: Final = 240  # our choice: pixels of the longer side
QUALITY: Final = 26  # x264's crf

Result = tuple[Query, list[Neighbor]]


def clip_of(sample: Sample, *, most: int = MOST) -> tuple[Tensor, int]:
    """Return frames (F, H, W, 3) uint8 of even sizes from the middle of a sample, and their rate per second.

    Raises:
        VideoError: the video is unreadable.
    """
    info, footage = probe(sample.video), footage_of(sample, None)
    rate = info.fps or FPS
    stride = max(round(rate / FPS), 1)
    ids = np.arange(footage.num_frames)[::stride]
    first = max((len(ids) - most) // 2, 0)
    numbers = footage.numbers(ids[first : first + most])
    scale = min(SIDE / max(info.height, info.width), 1.0)
    size = max(round(info.height * scale / 2) * 2, 2), max(round(info.width * scale / 2) * 2, 2)
    frames = [resize(frame[None], size, antialias=True) for frame in frames_in_order(sample.video, numbers)]
    return torch.cat(frames, dim=1).movedim(0, -1).contiguous(), max(round(rate / stride), 1)


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
            "clip": _card(query.sample),
            "neighbors": [
                {
                    **_card(file.sample(neighbor.row)),
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


def _card(sample: Sample) -> dict[str, Any]:
    """A clip as a data URI, or why the video is unreadable; its file, and its times."""
    times = "" if sample.start is None else f"{sample.start:.2f} s"
    times += "" if sample.end is None else f" to {sample.end:.2f} s"
    card = {"file": Path(sample.path).name, "path": sample.path, "times": times, "uri": None, "problem": None}
    try:
        frames, rate = clip_of(sample)
        with TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_video(clip, frames, rate, crf=QUALITY)
            content = base64.b64encode(clip.read_bytes()).decode()
        return card | {"uri": f"data:video/mp4;base64,{content}"}
    except VideoError as error:
        return card | {"problem": error.reason}


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
