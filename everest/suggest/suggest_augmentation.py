"""The augmentation of a suggested recipe: against overfitting, and without clips that get a wrong label.

All rules are our choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from everest.suggest.choices import Choice, Purpose
from everest.suggest.data_facts import DataFacts

FEW_VIDEOS: Final = 500  # up to here a model sees differences
VERY_FEW_VIDEOS: Final = 100  # up to here mild augmentation

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of `turn_left`, `turnLeft`, `turn LEFT`
_SIDE: Final = re.compile(r"left|right|(?:counter|anti)?clockwise", re.IGNORECASE)


def augmentation(facts: DataFacts, purpose: Purpose) -> list[Choice]:
    """Choose the augmentation and the input that keep a model from overfitting, and the flips."""
    mild = facts.videos <= VERY_FEW_VIDEOS
    count = f"{facts.videos} videos"
    chosen = [
        Choice.of(
            "finetune.crop_area",
            [0.5, 1.0] if mild else [0.3, 1.0],
            f"mild crops for {count}" if mild else f"stronger crops for {count}",
        ),
    ]
    if facts.task != "regression":
        chosen.append(Choice.of("finetune.mixup", 0.0 if mild else 0.8, "with the crops"))
    if purpose == "scratch" and mild:
        chosen.append(Choice.of("finetune.rand_augment", None, "with the crops"))
        chosen.append(Choice.of("finetune.erasing", 0.0, "with the crops"))
    if purpose == "scratch" and facts.videos <= FEW_VIDEOS:
        reason = f"a model overfits to the still parts of {count}; set frames for pre-training"
        chosen.append(Choice.of("model.input", "differences", reason))
    return [*chosen, *_flip(facts)]


def _flip(facts: DataFacts) -> list[Choice]:
    """No mirrored clips if a class is a side or a turn, which they would show the other way."""
    words = side_words(facts.class_names)
    if not words:
        return []
    reason = f"class names have {', '.join(words)}; a mirrored clip shows the opposite"
    return [Choice.of("data.flip", False, reason)]


def side_words(names: Iterable[str]) -> list[str]:
    """The words for a side or a turn in names of classes, in lower case, sorted."""
    words = {word.lower() for name in names for word in _WORD.findall(name)}
    return sorted(word for word in words if _SIDE.fullmatch(word))
