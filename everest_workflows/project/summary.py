"""Lines for people: how good the model is, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from everest.config.settings import Recipe
from everest.errors import join_first
from everest.evaluation.page import PageContent, Point, Section
from everest.metrics.head_metrics import FEW_OF_CLASS
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, name_metric, percent_text, value_text
from everest.system.text import plural, time_text
from everest_workflows.project.alarm_rates import HOURS_WITHOUT_ALARM
from everest_workflows.project.choice import BestCandidate
from everest_workflows.project.feature_kinds import FEATURES, IMAGES, LINEAR, SIZE_RATE
from everest_workflows.project.lists import STEP
from everest_workflows.project.request import Project
from everest_workflows.project.result import MeasuredTest, ProjectResult

MAX_NAMES: Final = 3  # of groups and recordings
MAX_CLASSES: Final = 12  # default: whose numbers are shown
MIN_TO_COMPARE: Final = 6  # groups; five that agree are no evidence: 2 / 2 ** 5 > 5 %, by the sign test
LINEAR_MODEL: Final = "a linear model on small images"
LABEL_MORE: Final = "label videos of more groups (people, animals, places), the rarest classes first"


def list_answer(result: ProjectResult) -> list[str]:
    """The lines of `everest train` above its table of classes: how good the model is."""
    alarms = [describe_alarms(result)] if result.alarms else []
    return [describe_answer(result), result.judgment, *alarms, *_list_timelines(result)]


def list_rest(result: ProjectResult) -> list[str]:
    """The lines of `everest train` below its table of classes: warnings, files and the next command."""
    since = " since it resumed" if result.resumed else ""
    took = f"took {time_text(60 * result.minutes)}{since} (planned {time_text(60 * result.planned_minutes)})"
    lines = [f"warning: {text}" for text in result.warnings]
    lines += [] if result.clip_time is None else [str(result.clip_time)]
    lines += [f"selected: {result.chosen}, {result.reason}", took, f"page: {result.report}"]
    lines += [] if result.figure is None else [f"picture: {result.figure}"]
    titles = ("next", "or in int8, often in half the time (docs/export.md)")
    commands = [f"{title}: {command}" for title, command in zip(titles, result.next, strict=False)]
    return [*lines, f"weights: {result.checkpoint}", *commands]


def class_table(result: MeasuredTest) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The titles and the rows of the table of classes; no row for a model that predicts numbers."""
    is_multi = any(behavior.ap is not None for behavior in result.behaviors)
    titles = ("average precision", "95 % CI") if is_multi else ("recall", "95 % CI", "precision", "F1")
    groups = ("worst group",) if any(each.worst_text for each in result.behaviors[:MAX_CLASSES]) else ()
    rows = []
    for behavior in result.behaviors[:MAX_CLASSES]:
        interval = "" if behavior.interval is None else "{:.3g} to {:.3g} %".format(*behavior.interval)
        scores = [behavior.ap] if is_multi else [behavior.recall, behavior.precision, behavior.f1]
        first, *others = (percent_text(score or 0.0) for score in scores)
        support = str(round(behavior.prevalence * result.videos / 100))
        worst = [behavior.worst_text for _ in groups]
        rows.append((behavior.name, first, interval, *others, support, *worst))
    return ("class", *titles, f"{result.unit}s", *groups), rows


def alarm_table(result: MeasuredTest) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The titles and the rows of the table of alarms; no row without --normal."""
    if not result.alarms:
        return (), []
    names = list(result.alarms[0].recall)[:MAX_CLASSES]
    groups = ("most false alarms in",) if any(row.worst for row in result.alarms) else ()
    rows = []
    for row in result.alarms:
        mark = " (chosen)" if row.threshold == result.threshold else ""
        recall = [percent_text(row.recall[name]) for name in names]
        false, bound = f"{row.false} of {row.normal_clips}", f"{row.bound_per_day:,.0f}"
        cells = f"{row.threshold:.3g}{mark}", false, f"{row.per_day:,.0f}", bound
        rows.append((*cells, *recall, *(row.worst_text for _ in groups)))
    recalls = (f"recall of {name}" for name in names)
    return ("threshold", "false alarms", "per day", "95 % bound per day", *recalls, *groups), rows


def describe_alarms(result: MeasuredTest) -> str:
    """The alarms at the chosen threshold, and what would bound the false ones, in one sentence."""
    row = next(alarm for alarm in result.alarms if alarm.threshold == result.threshold)
    recall = ", ".join(f"{name} {percent_text(value)}" for name, value in row.recall.items())
    clips = f"{row.false} of {plural(row.normal_clips, f'{result.normal} {result.unit}')}"
    text = f"alarms at threshold {row.threshold:.3g}: recall {recall}; false alarms: {clips}"
    bound = f"{float(f'{row.bound_per_day:.3g}'):,g} a day"
    if row.bound_per_day > 24:
        bound += f" ({float(f'{row.bound_per_day / 24:.3g}'):,g} an hour)"
    stream = f"for one stream of {result.alarm_seconds:g}-s windows (95 %)"
    if row.false or row.bound_per_day <= 1:
        return f"{text}, at most {bound} {stream}"
    fix = f"record {HOURS_WITHOUT_ALARM:.0f} hours without an alarm for 1 a day"
    return f"{text}, which cannot bound them below {bound} {stream}: {fix}"


def write_methods(project: Project, choice: BestCandidate, recipe: Recipe, test: MeasuredTest) -> str:
    """What was done and how good it is, in sentences for a publication."""
    init = "the encoder pre-trained here" if project.request.compares_views else project.request.init
    features = {name: kind.description.format(init=init) for name, kind in FEATURES.items()}
    if recipe.data.frames == 1:
        features["images"] = "an image of 16 x 16 pixels"
    members = [
        "a linear model of " + " and ".join(features[kind] for kind in LINEAR[name])
        if name in LINEAR
        else "a fine-tuned network"
        for name in choice.members
    ]
    model = f"the mean of {' and of '.join(members)}" if len(members) > 1 else members[0]
    unit = "video" if project.window is None else "window"
    units = "Videos"
    if project.window is not None:
        units = f"Windows of {project.window:g} s every {STEP * project.window:g} s"
    num_compared = sum(candidate.name != SIZE_RATE for candidate in test.candidates)
    chosen = "" if num_compared < 2 else f", the best of {num_compared} candidates on held-out {unit}s"
    size, groups = plural(test.videos, unit), plural(test.groups, "group")
    tested = f"On {size} of {groups} held out of training and choice"
    if test.folds:
        nested = "nested cross-validation" if chosen else "cross-validation"
        tested = f"In {nested} by group ({len(test.folds)} folds, {groups}, {size})"
    metric = name_metric(test.metric)
    sentences = [
        f"{units} ({plural(recipe.data.frames, 'frame')}) were classified by {model}{chosen}",
        f"{tested}, {metric} was {value_text(test.metric, test.value)}{format_interval(test.interval)}",
        f"Baselines: {', '.join(_list_baselines(test))}{_compare_with_images(test)}",
    ]
    if (scores := test.timelines) is not None:
        averaged = (
            f"With probabilities averaged over {scores.smooth:g} s" if scores.smooth else "In timelines"
        )
        right = f"frame accuracy was {scores.frame_accuracy:.1f} %"
        sentences.append(f"{averaged}, {right}{format_interval(scores.frame_interval)}")
    if test.interval is not None:
        few = ", widened by the t distribution for few groups" if test.groups < FEW_GROUPS else ""
        sentences.append(f"Intervals are bootstrapped over {plural(test.groups, 'group')}{few}")
    return f"{'. '.join(sentences)}. Software: everest {version('everest-video')}."


def describe_answer(result: MeasuredTest) -> str:
    """How good a model is on what it has not seen, beside the baselines, in one sentence."""
    return " ".join(_split_answer(result))


def _split_answer(result: MeasuredTest) -> tuple[str, str]:
    """The value of a model, and on what it was measured, beside the baselines."""
    size = plural(result.videos, f"test {result.unit}")
    size += f" of {plural(result.groups, 'group')}" if result.groups < result.videos else ""
    value = f"{value_text(result.metric, result.value)}{format_interval(result.interval)}"
    return f"{name_metric(result.metric)} {value}", f"on {size}; {', '.join(_list_baselines(result))}"


def _list_timelines(result: MeasuredTest) -> list[str]:
    """The line about the timelines of recordings, if there are any."""
    if (scores := result.timelines) is None:
        return []
    recordings = join_first([Path(name).name for name in scores.recordings], MAX_NAMES)
    correct = f"{scores.frame_accuracy:.1f} %{format_interval(scores.frame_interval)}"
    means = f"class mean {scores.mean_class_accuracy:.1f} %"
    if short := ", ".join(f"'{name}', {seconds:g} s" for name, seconds in scores.too_short.items()):
        means += f" (without {short} of truth)"
    means += "" if scores.f1 is None else f", F1@50 {scores.f1:.1f} %"
    majority = f"most frequent class {scores.majority_accuracy:.1f} %"
    return [f"timelines of {recordings}: frame accuracy {correct}, {majority}, {means}"]


def make_summary(title: str, result: MeasuredTest, *conclusions: str, **texts: Any) -> PageContent:
    """What the page of a test shows: the answer, then `conclusions`; `texts` are further fields."""
    selected = next((candidate for candidate in result.candidates if candidate.name == result.chosen), None)
    name = f"{result.chosen} (selected)"
    if result.folds:  # each fold chose its model, and its candidates are shown as well
        name, selected = "selected in each fold", None
    points = [Point(name=name, value=result.value, interval=result.interval, is_selected=True)]
    points += [
        Point(
            name="frame size and rate alone" if candidate.name == SIZE_RATE else candidate.name,
            value=candidate.test,
            interval=candidate.interval,
        )
        for candidate in result.candidates
        if candidate.test is not None and candidate is not selected
    ]
    if result.majority is not None:
        points.append(Point(name=f"always '{result.majority_class}'", value=result.majority))
    limit = "The selected model was chosen by loss on held-out groups, not by its value in this figure"
    details: dict[str, list[str]] = {
        "Selection": [
            f"{result.choice}: {result.reason}.",
            f"{limit}; the best of several looks too good to publish.",
        ]
    }
    sections = []
    if result.alarms:
        titles, rows = alarm_table(result)
        text, figure = describe_alarms(result).replace("alarms", "Alarms", 1), result.alarm_figure
        sections = [Section(heading="Alarms", lines=[text], titles=titles, rows=rows, figure=figure)]
        source = "groups of the training and validation lists"
        if result.folds:
            source = f"these clips, so its row is slightly too good: in each fold, {result.choice} was tested"
        details["Alarms"] = [
            f"A {result.unit} alarms if 1 - P({result.normal}) is at least the threshold; of several labels, "
            "if the most probable fault is.",
            f"The chosen threshold has the highest F1 of faults on {source}. Numbers per day count each "
            f"{result.unit} once. Their bound is one-sided and exact (Clopper and Pearson) for as many "
            "independent clips as the normal ones are worth: their number divided by the design effect of "
            "their groups (Kish), from the intraclass correlation of their scores.",
        ]
    return PageContent(
        title=f"Test of {title}",
        answer=[*_split_answer(result), *conclusions],
        sections=sections,
        metric=result.metric,
        points=points,
        chance=result.chance,
        warnings=result.warnings,
        figure=result.figure,
        details=details,
        **texts,
    )


def make_card_lines(result: ProjectResult) -> list[str]:
    """The accuracy that `everest train` reported, for a model card."""
    tested = f"in {len(result.folds)} folds; this model has learned from all videos" if result.folds else ""
    lines = [f"tested by `everest train` {tested}".strip(), describe_answer(result), result.judgment]
    lines += [f"warning: {text}" for text in result.warnings]
    titles, rows = class_table(result)
    lines += [
        ", ".join(f"{title} {cell}" for title, cell in zip(titles, row, strict=True) if cell) for row in rows
    ]
    lines += [describe_alarms(result)] if result.alarms else []
    return [f"- {line}" for line in [*lines, *_list_timelines(result)]]


def _list_baselines(result: MeasuredTest) -> list[str]:
    """The values that need no training, or little."""
    value = partial(value_text, result.metric)
    baselines = {
        "chance": result.chance,
        f"always '{result.majority_class}'": result.majority,
        "frame size and rate alone": next(
            (candidate.test for candidate in result.candidates if candidate.name == SIZE_RATE), None
        ),
        LINEAR_MODEL: result.linear_pixels,
    }
    lines = [f"{title} {value(number)}" for title, number in baselines.items() if number is not None]
    if result.linear_pixels is not None and result.frames is not None:  # its value depends on their number
        lines[-1] += f" (of the same {plural(result.frames, 'frame')})"
    return lines


def _compare_with_images(result: MeasuredTest) -> str:
    """Whether the model is clearly better than small images, as a clause; empty without an interval."""
    if result.difference is None or result.chosen == IMAGES:
        return ""
    sign = 1 if METRICS[result.metric].is_higher_better else -1
    low, high = sorted(sign * end for end in result.difference)
    clearly = "clearly" if low > 0 and result.groups >= MIN_TO_COMPARE else "not clearly"
    gain = f"95 % CI of the gain: {low:.3g} to {high:.3g}"
    return f"; the model was {clearly} better than small images ({gain})"


def format_interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else " (95 % CI: {:.3g} to {:.3g})".format(*interval)


def judge(result: MeasuredTest, *, possible_folds: int | None) -> str:
    """One sentence: the model is better than the best baseline, a tie or worse, or the test cannot tell.

    Args:
        possible_folds: that `--folds` may name; None: the videos cannot be tested in folds.
    """
    fix = LABEL_MORE
    if possible_folds is not None:
        fix = f"test on all videos with --folds {possible_folds} and a new --output"
    sign = 1 if METRICS[result.metric].is_higher_better else -1
    values = {"guessing": result.chance}
    if result.majority is not None:
        values = {f"always predicting '{result.majority_class}'": result.majority}
    if result.linear_pixels is not None and result.chosen != IMAGES:
        values[LINEAR_MODEL] = result.linear_pixels
    name = max(values, key=lambda each: sign * values[each])
    baseline = f"{name} ({value_text(result.metric, values[name])})"
    what, ends, equal = "the interval", result.interval, values[name]
    if name == LINEAR_MODEL and result.difference is not None:
        what, ends, equal = "the interval of the difference", result.difference, 0.0
    if ends is None or result.groups < MIN_TO_COMPARE:
        reason = f"a class has fewer than {FEW_OF_CLASS} videos in the test"
        if result.groups < MIN_TO_COMPARE:
            reason = f"only {plural(result.groups, 'group')}"
        return f"the test cannot tell whether the model is better than {baseline}: {reason}; {fix}"
    spread = "{} is {:.3g} to {:.3g}".format(what, *ends)
    low, high = sorted(sign * (end - equal) for end in ends)
    if low > 0:
        return f"clearly better than {baseline}: {spread}"
    if high < 0:
        return f"worse than {baseline}: {spread}; {LABEL_MORE}"
    return f"no clear difference from {baseline}: {spread}; {fix}"
