"""The words of a figure: frame numbers, counts of tokens, and the legend of its colors and strategies.

T frames of a clip, N tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from everest.figures.camera import CameraView
from everest.figures.mask_view import GRAY, RED, TINT, MaskView, draws_evenly
from everest.methods.learned import LearnedImportance
from everest.methods.ranked import ByChange, ByEmbedding, ByImportance
from everest.methods.strategies import STRATEGIES
from everest.system.text import escape_bytes

SMALL: Final = 8  # points, of explanations
TITLE_LINE: Final = 0.17  # inches
LEGEND_LINE: Final = 0.16

RGB = tuple[float, float, float]
DROPPED: Final[RGB] = (GRAY, GRAY, GRAY)
HALF: Final = (1 - TINT) * 0.5  # of a medium gray, faded to red
PREDICTED: Final[RGB] = (TINT * RED[0] + HALF, TINT * RED[1] + HALF, TINT * RED[2] + HALF)


class LegendLine(NamedTuple):
    """A line of a legend: what a color means, or an explanation without a color."""

    text: str
    color: RGB | str | None = None


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


CHOICES: Final = {name: strategy.words for name, strategy in STRATEGIES.items()}
SCORES: Final = {
    "learned": "the tokenizer's own scores",
    "random": "random scores",
    "frame-difference": "scores are the difference of pixels to the previous frame",
    "embedding-distance": "scores are the change of the embedding since the previous time slice",
    "uniform-frames": "time slices at equal distances",
    "all": "all tokens that are not visible",
}


def choice_text(view: MaskView) -> str:
    """How the strategy of a view chooses its tokens; a strategy of another package may have no words."""
    selector = view.selector
    if isinstance(selector, LearnedImportance):
        return f"keeps the tokens with the highest scores ({SCORES[selector.score]})"
    ascending = isinstance(selector, ByImportance) and selector.order == "ascending"
    text = selector.words.format(most="least" if ascending else "most")
    if draws_evenly(selector):
        return "draws tokens, all with the same probability"
    if not text or not isinstance(selector, ByChange):
        return text
    if selector.slice_cap is not None:
        text += f", at most {selector.slice_cap:.4g} of them in one time slice"
    if selector.align != "none":
        text += f", without the motion of the camera ({selector.align})"
    if selector.cuts == "detect":
        unit = "time slice" if isinstance(selector, ByEmbedding) else "frame"
        is_copied = not isinstance(selector, ByEmbedding) or selector.first_slice == "copy"
        values = f"takes the values of the next, or the mean of all {unit}s"
        text += f"; the first {unit} of a scene {values if is_copied else 'counts as unchanged'}"
    return text


def importance_text(view: MaskView) -> str:
    """Name the quantity that the importance of a view measures."""
    if isinstance(view.selector, LearnedImportance):
        return "score of a token"
    if view.selector.strategy == "frame-difference":
        return "difference to the previous frame"
    if view.selector.strategy == "redundancy-robust":
        return "change since the previous time slice"
    return "as the strategy measures it"


def camera_text(camera: CameraView) -> str:
    """In how many comparisons the camera moves, and the number of cuts."""
    cuts = f"cuts: {len(camera.scenes)}"
    if not camera.sees_motion:
        return f"{cuts};\nits motion is not measured"
    text = f"moves in {sum(camera.moves)} of {len(camera.moves)}\ncomparisons"
    return f"{text}; {cuts}" if camera.scenes else text


def hides(view: MaskView) -> bool:
    """Whether the encoder sees some of the kept tokens and the decoder predicts the others."""
    return 0 < len(view.visible) < len(view.kept)


def view_title(view: MaskView) -> str:
    """How many tokens a strategy keeps and shows to the encoder."""
    kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
    if not hides(view):
        return f"{view.title} keeps {share_text(kept, total)} tokens"
    if kept == total:
        return f"{view.title}: {share_text(visible, total)} tokens are visible, all others are predicted"
    seen = f"{round(100 * visible / total, 1):g} % = {visible}"
    return f"{view.title} keeps {share_text(kept, total)} tokens, of which {seen} are visible to the encoder"


def tokens_text(view: MaskView, *, tinted: bool) -> str:
    """The numbers of tokens in a row of a figure that compares several strategies."""
    kept, visible, total = len(view.kept), len(view.visible), view.grid.num_tokens
    if not tinted:
        return f"keeps {share_text(kept, total)}"
    return f"visible {share_text(visible, total)}\npredicted {share_text(kept - visible, total)}"


def legend_of(views: Sequence[MaskView], *, numbered: bool) -> list[LegendLine]:
    """Return the legend of a figure of one clip under one or several strategies.

    Args:
        numbered: whether the frame numbers are the numbers in the video, not in the clip.
    """
    first, entries = views[0], []
    drops = any(len(view.kept) < view.grid.num_tokens for view in views)
    if drops:
        meaning = "dropped" if first.rebuilt is not None else "dropped, neither encoded nor predicted"
        entries.append(LegendLine(f"gray: {meaning}", DROPPED))
    if len(views) == 1 and hides(first):
        hidden = "dropped, or hidden from the encoder and predicted" if drops else "hidden and predicted"
        entries.append(LegendLine(f'gray in "visible tokens": {hidden}', DROPPED))
    if is_tinted(views):
        entries.append(LegendLine("reddish: hidden from the encoder, predicted by the decoder", PREDICTED))
        entries.append(LegendLine("original colors: visible to the encoder"))
    for choice in dict.fromkeys(f"{view.title}: {text}" for view in views if (text := choice_text(view))):
        entries.append(LegendLine(choice))
    if len({id(view.selector) for view in views}) < len(views):
        text = "each view has other tokens, here of one clip; in training it has its own window and crop, too"
        entries.append(LegendLine(text))
    if any(view.importance is not None for view in views):
        text = "importance: yellow is high"
        if any(getattr(view.selector, "first_slice", "") == "copy" for view in views):
            text += "; the first time slice has no previous one and takes the values of the second"
        entries.append(LegendLine(text))
    cameras = [view.camera for view in views if view.camera is not None]
    if cameras:
        lag, marks = cameras[0].lag, "red border: a new scene begins in this time slice"
        if cameras[0].sees_motion:
            since = "the frame before" if lag == 1 else f"{lag} frames of the clip before"
            place = f"from where a place was {since} to a dot where it is (first frame of each time slice)"
            marks = f"a yellow line leads {place}; {marks}"
        entries.append(LegendLine(f"camera: {marks}"))
    if first.rebuilt is not None:
        entries.append(LegendLine("rebuilt: from the kept tokens and the first time slice of each window"))
    if first.with_truth:
        entries.append(LegendLine("* normalized predictions, with the true mean and std of each token"))
    return [*entries, LegendLine(token_text(first.tubelet, numbered=numbered))]


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
    return len(views) > 1 and any(
        view.importance is None and view.rebuilt is None and hides(view) for view in views
    )


def add_words(figure: Figure, title: str, legend: Sequence[LegendLine]) -> None:
    """Add a title at the top and a legend at the bottom, wrapped to the width of the figure."""
    title_lines, texts = _wrapped(title, legend, figure.get_figwidth())
    figure.suptitle("\n".join(title_lines), fontsize=10, parse_math=False)
    handles = [
        Patch(facecolor=entry.color or "none", edgecolor="black" if entry.color else "none", label=text)
        for entry, text in zip(legend, texts, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower left", fontsize=SMALL, frameon=False, labelspacing=0.25)


def height_of_words(title: str, legend: Sequence[LegendLine], width: float) -> float:
    """Inches of a title and a legend as `add_words` adds them to a figure of `width` inches."""
    title_lines, texts = _wrapped(title, legend, width)
    return TITLE_LINE * len(title_lines) + LEGEND_LINE * sum(len(text.splitlines()) for text in texts)


def _wrapped(title: str, legend: Sequence[LegendLine], width: float) -> tuple[list[str], list[str]]:
    """Return the lines of a title, and the text of each line of a legend, wrapped to `width` inches."""
    columns = int(width * 72 / (0.54 * SMALL))  # letters of medium width, with a margin
    lines = [textwrap.wrap(line, int(columns * SMALL / 10)) for line in escape_bytes(title).splitlines()]
    return list(chain(*lines)), [textwrap.fill(entry.text, columns - 8) for entry in legend]
