"""What a tokenizer keeps of a clip and what it makes of that, as LVMAE's Figure 3 shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everest.mask_view import GREY, spread
from everest.pictures import Row, draw_rows
from everest.tokenizer.report import Example


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """A PNG: of each clip its frames, the tokens that are kept, the clip rebuilt from them, the scores.

    The first slice is kept whole.
    """
    rows = [row for example in examples for row in _rows(example)]
    slices = len(examples[0].mask)
    footnote = "the first slice is kept whole; of the others the highest scores, the rest is grey"
    draw_rows(path, rows, slices=slices, title="what the tokenizer keeps and rebuilds", footnote=footnote)


def _rows(example: Example) -> list[Row]:
    frames = example.frames.movedim(0, -1)  # (T, H, W, 3)
    kept = spread(example.mask, frames.shape[:3]).unsqueeze(-1)  # (T, H, W, 1)
    return [
        (Path(example.video).name, frames),
        ("kept", frames * kept + GREY * (1 - kept)),
        ("rebuilt", example.rebuilt.movedim(0, -1).clamp(0, 1)),
        ("score", spread(example.scores, frames.shape[:3])),
    ]
