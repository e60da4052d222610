"""A few lines about a project for people: how good the model is, compared with what, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everest.metrics.names import METRICS
from everest.system.text import counted

LABEL_MORE = "label videos of more groups (persons, animals, places), the rarest classes first"


def verdict(result: Mapping[str, Any]) -> list[str]:
    """The lines of `everest train`."""
    metric = METRICS[result["metric"]]
    interval = result["interval"]
    spread = "" if interval is None else f" (95 %: {interval[0]:.3g} to {interval[1]:.3g})"
    of = counted(result["videos"], "test video" if "frame_accuracy" not in result else "test window")
    groups = f" of {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    tested = f", by {counted(len(result['folds']), 'fold')}" if "folds" in result else ""
    references = {
        "chance": result["chance"],
        f"always {_named(result)}": result["majority"],
        "a linear model of small images": result["linear_pixels"],
    }
    shown = [f"{name} {_text(result, value)}" for name, value in references.items() if value is not None]
    lines = [
        f"{metric.title} {_text(result, result[result['metric']])}{spread} on {of}{groups}{tested}",
        f"compare: {', '.join(shown)}",
    ]
    if "frame_accuracy" in result:
        lines.append(
            f"timelines: right frames {result['frame_accuracy']:.1f} % (always the most frequent class "
            f"{result['majority_accuracy']:.1f} %), mean over classes {result['mean_class_accuracy']:.1f} %, "
            f"F1@50 {_percent(result['f1@50'])}"
        )
    if result["judgment"]:
        lines.append(result["judgment"])
    pages = [row["report"] for row in result["folds"]] if "folds" in result else [result["report"]]
    lines += [f"page: {page}" for page in pages]
    return [*lines, f"model: {result['checkpoint']}", "\n  ".join(["next:", *result["next"]])]


def judge(result: Mapping[str, Any]) -> str | None:
    """One sentence if the model is not clearly better than an answer that needs no training; else None."""
    name, interval = result["metric"], result["interval"]
    sign = 1 if METRICS[name].higher else -1
    value = result[name]
    simple = result["chance"] if result["majority"] is None else result["majority"]
    answer = f"always predicting {_named(result)}" if result["majority"] is not None else "guessing"
    if "frame_accuracy" in result and result["frame_accuracy"] <= result["majority_accuracy"]:
        share = f"{result['majority_accuracy']:.1f} %"
        return f"timelines no better than always the most frequent class ({share}): {LABEL_MORE}"
    if simple is not None and sign * value <= sign * simple:
        return f"no better than {answer} ({_text(result, simple)}): {LABEL_MORE}"
    linear = result["linear_pixels"]
    if linear is not None and sign * value <= sign * linear:
        return (
            f"no better than a linear model of small images ({_text(result, linear)}): it has learned "
            f"little; {LABEL_MORE}"
        )
    if interval is None or None in interval:
        return (
            "the test videos are of one group, so it is not known how good the model is on others: add groups"
        )
    near = interval[0] if sign > 0 else interval[1]
    if simple is not None and sign * near <= sign * simple:
        return (
            f"the interval includes {answer} ({_text(result, simple)}): more test groups are needed to tell"
        )
    return None


def next_commands(run: Path, result: Mapping[str, Any], *, window: float | None) -> list[str]:
    """The commands that use the model.

    Args:
        window: seconds, of a model of recordings.
    """
    checkpoint = f"--checkpoint {shlex.quote(str(run))}"
    if window is None:
        return [f"everest predict VIDEO {checkpoint}"]
    smooth = result.get("smooth", window)
    rules = f"--window {window:g} --step {window / 4:g} --smooth {smooth:g} --bouts"
    return [f"everest predict VIDEO {checkpoint} --timeline {rules}"]


def _named(result: Mapping[str, Any]) -> str:
    name = result["majority_class"]
    return "the most frequent class" if name is None else f"'{name}'"


def _text(result: Mapping[str, Any], value: float) -> str:
    return _percent(value) if METRICS[result["metric"]].percent else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"
