"""The words of a figure: frame numbers, counts of tokens, and the legend of its colors and strategies.

T frames of a clip, N tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.figures.camera import CameraView
from everest.figures.drawing import plain
from everest.figures.masks import GRAY, RED, TINT, MaskView, draws_evenly
from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByChange, ByEmbedding, ByImportance
from everest.methods.strategies import STRATEGIES
from everest.system.text import escape_bytes

SMALL: Final = 8  # points, of explanations
TITLE: Final = 10  # points
LINE: Final = 0.16  # inches of a line of the legend
TITLE_LINE: Final = 0.17

RGB = tuple[float, float, float]
Legend = dict[str, RGB | str | None]  # the meaning of each color, and explanations without a color
DROPPED: Final[RGB] = (GRAY, GRAY, GRAY)
HALF: Final = (1 - TINT) * 0.5  # of a medium gray, faded to red
PREDICTED: Final[RGB] = (TINT * RED[0] + HALF, TINT * RED[1] + HALF, TINT * RED[2] + HALF)

CHOICES: Final = {name: strategy.words for name, strategy in STRATEGIES.items()}
SCORES: Final = {
    "learned": "the tokenizer's own scores",
    "random": "random scores",
    "frame-difference": "scores are the difference of pixels to the previous frame",
    "embedding-distance": "scores are the change of the embedding since the previous time slice",
    "uniform-frames": "time slices at equal distances",
    "all": "all tokens that are not visible",
}
MEASURED: Final = {  # by strategies
    "learned-importance": "score of a token",
    "frame-difference": "difference to the previous frame",
    "redundancy-robust": "change since the previous time slice",
}


@dataclass(frozen=True, kw_only=True)
class ShownFrames:
    """The frames of a video that a figure shows."""

    video: str
    numbers: tuple[int, ...]  # T frame numbers of the video, from 0, ascending; numbers may repeat
    total: int  # frames of the video
    missing: int = 0  # frames that a short video lacks: the last one is repeated
    fps: float | None = None  # frames per second that are shown; None: as the file

    def __str__(self) -> str:
        shown = sorted(set(self.numbers))
        text = f"{self.video}: {len(shown)} of {self.total} frames, {range_text(shown)}"
        steps = {later - former for former, later in pairwise(shown)}
        if len(steps) == 1 and steps != {1}:
            text += f" in steps of {steps.pop()}"
        if len(shown) < len(self.numbers) - self.missing:
            fewer = "fewer" if self.fps is None else f"fewer than {self.fps:g} per second"
            text += f"; frames are repeated because the video has {fewer}"
        if self.missing:
            text += f"; the video is too short for {len(self.numbers)} such frames: the last is repeated"
        return text


def range_text(numbers: Sequence[int]) -> str:
    """`7` or `7, 11` or `7 to 19`: the ascending frame numbers of a time slice."""
    if len(numbers) < 3:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]} to {numbers[-1]}"


def share_text(count: int, total: int) -> str:
    """`30 % = 604 of 2016`."""
    return f"{round(100 * count / total, 1):g} % = {count} of {total}"


def choice_text(view: MaskView) -> str:
    """How the strategy of a view chooses its tokens; a strategy of another package may have no words."""
    selector = view.selector
    if isinstance(selector, LearnedImportance):
        return f"{selector.words} ({SCORES[selector.score]})"
    if draws_evenly(selector):
        return "draws tokens, all with the same probability"
    ascending = isinstance(selector, ByImportance) and selector.order == "ascending"
    text = selector.words.format(most="least" if ascending else "most")
    if not text or not isinstance(selector, ByChange):
        return text
    if selector.slice_cap is not None:
        text += f", at most {selector.slice_cap:.4g} of them in one time slice"
    if selector.align != "none":
        text += f", without the motion of the camera ({selector.align})"
    if selector.cuts == "detect":
        unit = "time slice" if isinstance(selector, ByEmbedding) else "frame"
        is_zero = isinstance(selector, ByEmbedding) and selector.first_slice == "zero"
        copied = f"takes the values of the next, or the mean of all {unit}s"
        text += f"; the first {unit} of a scene {'counts as unchanged' if is_zero else copied}"
    return text


def importance_text(view: MaskView) -> str:
    """Name the quantity that the importance of a view measures."""
    return MEASURED.get(view.selector.strategy, "as the strategy measures it")


def camera_text(camera: CameraView) -> str:
    """In how many comparisons the camera moves, and the number of cuts."""
    cuts = f"cuts: {len(camera.scenes)}"
    if not camera.sees_motion:
        return f"{cuts};\nits motion is not measured"
    text = f"moves in {sum(camera.moves)} of {len(camera.moves)}\ncomparisons"
    return f"{text}; {cuts}" if camera.scenes else text


def view_title(view: MaskView) -> str:
    """How many tokens a strategy keeps and shows to the encoder."""
    kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
    if not view.hides:
        return f"{view.title} keeps {share_text(kept, total)} tokens"
    if kept == total:
        return f"{view.title}: {share_text(visible, total)} tokens are visible, all others are predicted"
    seen, _, _ = share_text(visible, total).partition(" of ")
    return f"{view.title} keeps {share_text(kept, total)} tokens, of which {seen} are visible to the encoder"


def token_text(tubelet: tuple[int, int, int], *, numbered: bool) -> str:
    """Explain a token of `tubelet` (frames, height, width), a time slice and frame numbers."""
    frames, height, width = tubelet
    noun = "frame" if frames == 1 else "frames"
    return (
        f"token: {frames} {noun} x {height} x {width} pixels; time slice: all tokens of the same {noun}; "
        f"frame numbers are counted from 0 in the {'video' if numbered else 'clip'}"
    )


def is_tinted(views: Sequence[MaskView]) -> bool:
    """Whether a figure of these views shows the predicted tokens reddish, in one row with the visible ones.

    Needed for masks that keep all tokens, which differ in the visible ones only.
    """
    masks = [view for view in views if view.importance is None and view.rebuilt is None]
    return len(views) > 1 and any(view.hides for view in masks)


def legend_of(views: Sequence[MaskView], *, numbered: bool) -> Legend:
    """Return the legend of a figure of one clip under one or several strategies.

    Args:
        numbered: whether the frame numbers are the numbers in the video, not in the clip.
    """
    first = views[0]
    legend: Legend = {}
    drops = any(len(view.kept) < view.grid.num_tokens for view in views)
    if drops:
        meaning = "dropped" if first.rebuilt is not None else "dropped, neither encoded nor predicted"
        legend[f"gray: {meaning}"] = DROPPED
    if len(views) == 1 and first.hides:
        hidden = "dropped, or hidden from the encoder and predicted" if drops else "hidden and predicted"
        legend[f'gray in "visible tokens": {hidden}'] = DROPPED
    if is_tinted(views):
        legend["reddish: hidden from the encoder, predicted by the decoder"] = PREDICTED
        legend["original colors: visible to the encoder"] = None
    legend |= {f"{view.title}: {text}": None for view in views if (text := choice_text(view))}
    if len({id(view.selector) for view in views}) < len(views):
        text = "each view has other tokens, here of one clip; in training it has its own window and crop, too"
        legend[text] = None
    if any(view.importance is not None for view in views):
        text = "importance: yellow is high"
        if any(getattr(view.selector, "first_slice", "") == "copy" for view in views):
            text += "; the first time slice has no previous one and takes the values of the second"
        legend[text] = None
    camera = next((view.camera for view in views if view.camera is not None), None)
    if camera is not None:
        marks = "red border: a new scene begins in this time slice"
        if camera.sees_motion:
            since = "the frame before" if camera.lag == 1 else f"{camera.lag} frames of the clip before"
            place = f"from where a place was {since} to a dot where it is (first frame of each time slice)"
            marks = f"a yellow line leads {place}; {marks}"
        legend[f"camera: {marks}"] = None
    if first.rebuilt is not None:
        legend["rebuilt: from the kept tokens and the first time slice of each window"] = None
    if first.with_truth:
        legend["* normalized predictions, with the true mean and std of each token"] = None
    return legend | {token_text(first.tubelet, numbered=numbered): None}


def add_words(figure: Figure, title: str, legend: Legend) -> float:
    """Add a title at the top and a legend at the bottom, wrapped to the width of the figure.

    Returns:
        Their height in inches.
    """
    columns = int(figure.get_figwidth() * 72 / (0.54 * SMALL))  # letters of medium width, with a margin
    title_lines = [
        plain(line)
        for part in escape_bytes(title).splitlines()
        for line in textwrap.wrap(part, int(columns * SMALL / TITLE))
    ]
    figure.suptitle("\n".join(title_lines), fontsize=TITLE)
    labels = [plain(textwrap.fill(text, columns - 8)) for text in legend]
    handles = [
        Patch(facecolor=color or "none", edgecolor="black" if color else "none") for color in legend.values()
    ]
    figure.legend(handles, labels, loc="outside lower left", fontsize=SMALL, frameon=False, labelspacing=0.25)
    num_lines = sum(len(label.splitlines()) for label in labels)
    return TITLE_LINE * len(title_lines) + LINE * num_lines
