"""Windows in which nothing moves: skipped without running the network, and audited.

The motion of a window is the largest mean absolute change of a patch of 16 x 16 pixels from one frame of its
clips to the next, in gray levels from 0 to 255. A small object that moves in a large image changes few of the
patches, but these much; the mean of the image would hide it. The frames are the network's input.

W windows, V views, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from scipy.stats import beta
from torch import Tensor
from torch.nn import functional as F

from everest.annotations.bout import BACKGROUND
from everest.config.heads import MULTI_LABEL
from everest.errors import RecipeError
from everest.inference.bouts import BoutRules
from everest.lists.classes import Classes
from everest.system.text import counted

PATCH: Final = 16  # pixels of a side; our choice
CONFIDENCE: Final = 0.95  # of a bound


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleRules:
    """Which windows are skipped, and how many of a video's skipped windows are run to audit them.

    Raises:
        RecipeError: a value is out of range.
    """

    below: float  # gray levels
    audit: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.below <= 255:
            raise RecipeError(f"--idle-below: must be from 0 to 255 gray levels, not {self.below}")
        if self.audit < 0:
            raise RecipeError(f"--audit: must be a number of windows, not {self.audit}")


def window_motion(views: Tensor) -> Tensor:
    """The motion of windows, (W,), from their views (W, V, C, T, H, W) uint8 with T > 1."""
    change = views.float().diff(dim=3).abs().mean(dim=2)  # (W, V, T - 1, H, W)
    patches = F.avg_pool2d(change.flatten(0, 1), PATCH, ceil_mode=True, count_include_pad=False)
    return patches.flatten(1).amax(dim=1).unflatten(0, (len(views), -1)).amax(dim=1)


def have_class(answers: Tensor, classes: Classes, rules: BoutRules) -> Tensor:
    """Whether windows have a class of any head, (W,) bool, from their probabilities (W, outputs)."""
    found = torch.zeros(len(answers), dtype=torch.bool)
    parts = answers.split([head.outputs for head in classes.heads], dim=1)
    for head, part in zip(classes.heads, parts, strict=True):
        if head.task == MULTI_LABEL:
            high = head.thresholds if rules.threshold is None else rules.threshold[0]
            found |= (part >= torch.tensor(high)).any(dim=1)
        else:
            best, index = part.max(dim=1)
            names = classes.of_head(head)
            is_class = torch.tensor([name != BACKGROUND for name in names])
            found |= is_class[index] & (best >= (rules.background or 0.0))
    return found


def check_audit(classes: Classes, rules: BoutRules) -> None:
    """Raise RecipeError if every window has a class, so that every skipped window is missed."""
    is_single = any(head.task == "single-label" for head in classes.heads)
    has_name = any(BACKGROUND in classes.of_head(head) for head in classes.heads)
    if is_single and rules.background is None and not has_name:
        raise RecipeError("--audit: every window has a class here; set --background P, the least probability")


def most_bouts(classes: Classes) -> int:
    """The number of bouts that a window can be in: one for each head, of a multi-label one for each class."""
    return sum(head.outputs if head.task == MULTI_LABEL else 1 for head in classes.heads)


def audited(with_class: int, windows: int, *, skipped: int, bouts: int, most: int) -> dict[str, Any]:
    """The result of an audit of windows drawn at random from those skipped.

    The upper bound of the share of skipped windows that have a class is the one-sided 95 % bound of Clopper
    and Pearson 1934; with none among n it is about 3 / n. A bout that is missed as a whole has a skipped
    window with a class, and such a window is in `most` bouts at most; their share of all bouts follows.

    Args:
        with_class: of `windows`, the number that has a class.
        skipped: number of all skipped windows.
        bouts: number of bouts found in the windows that were not skipped.
        most: see `most_bouts`.
    """
    bound = (
        1.0 if with_class == windows else float(beta.ppf(CONFIDENCE, with_class + 1, windows - with_class))
    )
    missed = bound * skipped * most
    return {
        "windows": windows,
        "with_class": with_class,
        "share_at_most": round(bound, 6),
        "missed_bouts_at_most": round(missed / (missed + bouts), 6) if missed + bouts else 0.0,
    }


def idle_text(video: str, idle: dict[str, Any]) -> str:
    """A sentence about the skipped windows of a video, from `idle` of its row."""
    saved, number = idle["seconds_saved"], counted(idle["windows"], "window")
    text = f"{video}: skipped {idle['skipped']} of {number} because nothing moves in them"
    if saved is not None:
        text += f"; that saved about {saved:.1f} s of the network"
    audit = idle.get("audit")
    if audit is None:
        return text
    return (
        f"{text}; {audit['with_class']} of {audit['windows']} audited have a class: with 95% confidence, at "
        f"most {audit['share_at_most']:.1%} of the skipped windows do, and at most "
        f"{audit['missed_bouts_at_most']:.1%} of all bouts are missed"
    )
