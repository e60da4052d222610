"""Lines for people: whether pre-training pays, how good the model is, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from everest.errors import first_names
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, value_text
from everest.suggest.rules import DataFacts
from everest.system.text import counted

MOST_LABELS: Final = 5  # of a class: up to here pre-training gained (docs/start/choosing.md)
MOST_NAMES: Final = 3  # of test recordings
TIMES_AS_MANY: Final = 4  # our choice: unlabeled videos for each labeled one
LABEL_MORE: Final = "label videos of more groups (people, animals, places), the rarest classes first"


def doubt_about_pretraining(facts: DataFacts) -> str | None:
    """Why pre-training on the unlabeled videos may not be worth its time; None if it may."""
    if facts.pretrain is None or not facts.classes:
        return None
    labels = facts.train.samples / facts.classes
    if labels <= MOST_LABELS and facts.pretrain.samples >= TIMES_AS_MANY * facts.train.samples:
        return None
    reason = f"with {labels:.3g} labels per class, training from scratch does about as well"
    if labels <= MOST_LABELS:
        reason = f"it gained with at least {TIMES_AS_MANY} unlabeled videos for each labeled one"
    return (
        f"--unlabeled: pre-training on {counted(facts.pretrain.samples, 'video')} is probably not worth its "
        f"time: {reason} (docs/start/choosing.md)"
    )


def verdict(result: Mapping[str, Any]) -> list[str]:
    """The lines of `everest train`."""
    name, interval = result["metric"], result["interval"]
    answers = [
        f"{title} {value_text(name, value)}"
        for title, value in (
            ("chance", result["chance"]),
            (f"always '{result['majority_class']}'", result["majority"]),
            ("a linear model on small images", result["linear_pixels"]),
        )
        if value is not None
    ]
    spread = "" if interval is None else f" (95 % interval: {interval[0]:.3g} to {interval[1]:.3g})"
    of = counted(result["videos"], "test window" if "frame_accuracy" in result else "test video")
    of += f" of {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    lines = [
        f"{METRICS[name].title} {value_text(name, result[name])}{spread} on {of}",
        f"compare: {', '.join(answers)}",
    ]
    if "frame_accuracy" in result:
        recordings = [name for part in result.get("folds", [result]) for name in part["recordings"]]
        lines.append(
            f"timelines of {first_names(recordings, MOST_NAMES)}: frames correct "
            f"{result['frame_accuracy']:.1f} % (most frequent class {result['majority_accuracy']:.1f} %), "
            f"class mean {result['mean_class_accuracy']:.1f} %, "
            f"F1@50 {result['f1@50'] or 0:.1f} %"
        )
    lines += [result["judgment"]] if result["judgment"] else []
    parts = result.get("folds", [result])
    lines += [f"page: {part['report']}" for part in parts]
    lines += [f"picture: {part['figure']}" for part in parts if "figure" in part]
    return [*lines, f"model: {result['checkpoint']}", f"next: {result['next'][0]}"]


def judge(result: Mapping[str, Any], *, possible_folds: int | None) -> str | None:
    """One sentence if the model is not clearly better than an answer that needs no training; else None.

    Args:
        possible_folds: that `--folds` can have; None: the videos cannot be tested so.
    """
    name, interval, linear = result["metric"], result["interval"], result["linear_pixels"]
    sign = 1 if METRICS[name].higher else -1
    more = LABEL_MORE
    if possible_folds is not None:
        more = f"test on all videos with --folds {possible_folds} and a new --output"
    simple, answer = result["chance"], "guessing"
    if result["majority"] is not None:
        simple, answer = result["majority"], f"always predicting '{result['majority_class']}'"
    answer = f"{answer} ({value_text(name, simple)})"
    if simple is not None and sign * result[name] <= sign * simple:
        return f"no better than {answer}: {LABEL_MORE}"
    if "frame_accuracy" in result and result["frame_accuracy"] <= result["majority_accuracy"]:
        share = f"{result['majority_accuracy']:.1f} %"
        return f"timelines no better than always the most frequent class ({share}): {LABEL_MORE}"
    if linear is not None and sign * result[name] <= sign * linear:
        small = f"a linear model on small images ({value_text(name, linear)})"
        if "folds" not in result and result["groups"] < FEW_GROUPS:
            of = f"{result['videos']} tests of {counted(result['groups'], 'group')}"
            return f"no better than {small}, but {of} are too few to tell: {more}"
        return f"no better than {small}: {LABEL_MORE}, or train longer (--set finetune.steps)"
    if interval is None:
        return f"no interval: the test has only one group; {more}"
    if simple is not None and sign * interval[sign < 0] <= sign * simple:
        return f"the interval includes {answer}, so the test cannot tell: {more}"
    return None
