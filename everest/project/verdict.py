"""Lines for people: the plan, whether pre-training pays, how good the model is, and what to do next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import BACKGROUND, UNSCORED
from everest.errors import first_names
from everest.lists.classes import Classes
from everest.lists.labels import indices
from everest.lists.sample import ListSize, Sample
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, value_text
from everest.project.lists import ProjectLists
from everest.suggest.rules import DataFacts
from everest.suggest.suggestion import Suggestion
from everest.system.text import counted, time_text

MOST_LABELS: Final = 5  # of a class: up to here pre-training gained (docs/start/choosing.md)
MOST_NAMES: Final = 3  # of groups and recordings
FEWEST_TO_CHOOSE: Final = 20  # our choice: validation samples; each of fewer is more than 5 %
MOST_CLASSES: Final = 12  # our choice: whose numbers are shown
FEWEST_GROUPS: Final = 6  # five that all agree are no evidence: 2 / 2 ** 5 > 5 %, by the sign test
TIMES_AS_MANY: Final = 4  # our choice: unlabeled videos for each labeled one
LABEL_MORE: Final = "label videos of more groups (people, animals, places), the rarest classes first"


def plan_document(
    lists: ProjectLists,
    suggestion: Suggestion,
    samples: Mapping[str, Sequence[Sample]],
    classes: Classes,
    seconds: tuple[float, float],
) -> dict[str, Any]:
    """The plan as `--json` has it, with its lines for people.

    Args:
        samples: of each list.
        seconds: of everything, and of the validations and tests.
    """
    sizes = {}
    for key, listed in samples.items():
        groups = sorted({sample.group for sample in listed if sample.group is not None})
        names = f" ({', '.join(groups)})" if 0 < len(groups) <= MOST_NAMES else ""
        sizes[key] = f"{ListSize.of(listed)}{names}"
    every = [sample for listed in samples.values() for sample in listed]
    counts, lines = describe_samples(every, classes, windows=lists.window is not None)
    data, trainings = suggestion.recipe.data, 1 + len(lists.folds)
    if lists.found:
        lines.append(
            f"divided by the lists in {data.root}: {', '.join(str(getattr(data, key)) for key in samples)}"
        )
    chosen_on = len(every) // len(lists.folds) if lists.folds else len(samples.get("val", ()))
    if chosen_on < FEWEST_TO_CHOOSE:
        few = f"the best weights are chosen on only {counted(chosen_on, ListSize.of(every).unit)}"
        few += " in each fold; the final model keeps its last weights" if lists.folds else ""
        lines.append(f"warning: {few if chosen_on else 'no validation list, so the last weights are used'}")
    several = f" for {counted(trainings, 'fine-tuning')}" if trainings > 1 else ""
    total = f"all training: about {time_text(seconds[0])}{several}"
    total += f", including {time_text(seconds[1])} for validations and tests"
    of_lists = [f"{key}: {size}" for key, size in sizes.items()]
    return {
        "lists": sizes,
        "classes": counts,
        "window": lists.window,
        "stages": [time._asdict() for time in suggestion.times],
        "trainings": trainings,
        "minutes": round(seconds[0] / 60, 1),
        "lines": [*of_lists, *lines, *map(str, suggestion.times), total],
    }


def describe_samples(
    samples: Sequence[Sample], classes: Classes, *, windows: bool
) -> tuple[dict[str, int], list[str]]:
    """The number of samples of each class, and lines about classes, groups and time without a bout.

    Args:
        windows: whether the samples are from annotated recordings.
    """
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    of_groups = [f"{counted(len(groups), 'group')}: {first_names(groups, MOST_NAMES)}"] if groups else []
    if classes.heads[0].task == "regression":
        return {}, of_groups
    counts = dict.fromkeys(classes.of_head(classes.heads[0]), 0)
    behaviors: dict[str, set[str]] = defaultdict(set)  # of each recording
    without = 0
    for sample in samples:
        names = {classes.name(index) for index in indices(sample.labels[0])}
        for name in names:
            counts[name] += 1
        behaviors[sample.source] |= names - {BACKGROUND}
        without += not names - {BACKGROUND}
    each = [f"{name} {number}" for name, number in counts.items()]
    lines = [f"{counted(len(each), 'class')}: {first_names(each, MOST_CLASSES)}", *of_groups]
    if windows and without:
        fate = f"class '{BACKGROUND}'" if BACKGROUND in counts else "no class"
        fix = f"label time that nobody watched '{UNSCORED}'"
        lines.append(f"{without} of {counted(len(samples), 'window')} have no bout ({fate}); {fix}")
    single = sorted(recording for recording, names in behaviors.items() if len(names) == 1)
    if windows and single:
        what = f"only one behavior is annotated in {first_names(single, MOST_NAMES)}"
        lines.append(f"warning: {what}; time with any other counts as time without behavior")
    return counts, lines


def doubt_about_pretraining(facts: DataFacts) -> str | None:
    """Why pre-training on the unlabeled videos may not be worth its time; None if it may."""
    if facts.pretrain is None or not facts.classes:
        return None
    labels, unlabeled = facts.train.samples / facts.classes, facts.pretrain.samples
    if labels > MOST_LABELS:
        reason = f"with {labels:.3g} labels per class, training from scratch does about as well"
    elif unlabeled < TIMES_AS_MANY * facts.train.samples:
        reason = f"it gained with at least {TIMES_AS_MANY} unlabeled videos for each labeled one"
    else:
        return None
    return (
        f"--unlabeled: pre-training on {counted(unlabeled, 'video')} is probably not worth its "
        f"time: {reason} (docs/start/choosing.md)"
    )


def verdict(result: Mapping[str, Any]) -> list[str]:
    """The lines of `everest train`."""
    lines = [*answers(result), result["judgment"]]
    took, planned = (time_text(60 * result[key]) for key in ("minutes", "planned_minutes"))
    lines.append(f"took {took} {'since it resumed ' if result['resumed'] else ''}(planned {planned})")
    figure = [f"picture: {result['figure']}"] if "figure" in result else []
    lines += [f"page: {result['report']}", *figure]
    return [*lines, f"model: {result['checkpoint']}", f"next: {result['next'][0]}"]


def answers(result: Mapping[str, Any]) -> list[str]:
    """The lines about a test: the metric, the baselines, and the timelines of recordings."""
    name, interval = result["metric"], result["interval"]
    simple = [
        f"{title} {value_text(name, value)}"
        for title, value in (
            ("chance", result["chance"]),
            (f"always '{result['majority_class']}'", result["majority"]),
            ("a linear model on small images", result["linear_pixels"]),
        )
        if value is not None
    ]
    narrow = f", too narrow: fewer than {FEW_GROUPS} groups" if result["groups"] < FEW_GROUPS else ""
    spread = "" if interval is None else f" (95 % interval: {interval[0]:.3g} to {interval[1]:.3g}{narrow})"
    of = counted(result["videos"], "test window" if "frame_accuracy" in result else "test video")
    of += f" of {counted(result['groups'], 'group')}" if result["groups"] < result["videos"] else ""
    lines = [
        f"{METRICS[name].title} {value_text(name, result[name])}{spread} on {of}",
        f"compare: {', '.join(simple)}",
    ]
    if "frame_accuracy" in result:
        recordings = first_names([Path(name).name for name in result["recordings"]], MOST_NAMES)
        correct = (
            f"{result['frame_accuracy']:.1f} % (most frequent class {result['majority_accuracy']:.1f} %)"
        )
        scores = f"class mean {result['mean_class_accuracy']:.1f} %, F1@50 {result['f1@50'] or 0:.1f} %"
        lines.append(f"timelines of {recordings}: frames correct {correct}, {scores}")
    return lines


def judge(result: Mapping[str, Any], *, possible_folds: int | None) -> str:
    """One sentence: whether the model is clearly better than answers that need no training.

    Args:
        possible_folds: that `--folds` can have; None: the videos cannot be tested so.
    """
    name, interval, linear = result["metric"], result["interval"], result["linear_pixels"]
    sign, groups = 1 if METRICS[name].higher else -1, result["groups"]
    more = LABEL_MORE
    if possible_folds is not None:
        more = f"test on all videos with --folds {possible_folds} and a new --output"
    simple, answer = result["chance"], "guessing"
    if result["majority"] is not None:
        simple, answer = result["majority"], f"always predicting '{result['majority_class']}'"
    answer = f"{answer} ({value_text(name, simple)})"
    small = f"a linear model on small images ({value_text(name, linear)})"
    if simple is not None and sign * result[name] <= sign * simple:
        return f"no better than {answer}: {LABEL_MORE}"
    if "frame_accuracy" in result and result["frame_accuracy"] <= result["majority_accuracy"]:
        share = f"{result['majority_accuracy']:.1f} %"
        return f"timelines no better than always the most frequent class ({share}): {LABEL_MORE}"
    if linear is not None and sign * result[name] <= sign * linear:
        if "folds" not in result and groups < FEW_GROUPS:
            of = f"{result['videos']} tests of {counted(groups, 'group')}"
            return f"no better than {small}, but {of} are too few to tell: {more}"
        return f"no better than {small}: {LABEL_MORE}, or train longer (--set finetune.steps)"
    if interval is None:
        return f"no interval: the test has only one group; {more}"
    if simple is not None and sign * interval[sign < 0] <= sign * simple:
        return f"the interval includes {answer}, so the test cannot tell: {more}"
    if linear is None:
        return f"clearly better than {answer}"
    what, value, ends = "the interval of the difference", 0.0, result.get("difference")
    if ends is None:  # of a metric that single videos do not have
        what, value, ends = "the interval", linear, interval
    spread = f"{what} is {ends[0]:.3g} to {ends[1]:.3g}"
    if groups < FEWEST_GROUPS:
        return f"no clear difference from {small}: only {counted(groups, 'group')}; {more}"
    if ends[0] <= value <= ends[1]:
        return f"no clear difference from {small}: {spread}; {more}"
    return f"clearly better than {small}: {spread}"
