"""Lines for people: the plan, how good the model is, and what to do next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from everest.annotations.bout import BACKGROUND, UNSCORED
from everest.annotations.records import left_out_rows, left_out_text
from everest.checkpoints.public_weights import weights_in_cache
from everest.errors import first_names
from everest.lists.classes import Classes
from everest.lists.labels import indices
from everest.lists.sample import ListSize, Sample
from everest.metrics.intervals import FEW_GROUPS
from everest.metrics.names import METRICS, value_text
from everest.project.candidates import IMAGES, INPUTS
from everest.project.inputs import FEWEST_GROUPS
from everest.project.request import ProjectLists, Request
from everest.project.result import NETWORK, InputTest, MeasuredTest, ProjectResult
from everest.suggest.suggestion import Suggestion
from everest.system.text import counted, time_text

MOST_NAMES: Final = 3  # of groups and recordings
FEWEST_TO_CHOOSE: Final = 20  # default: validation samples; each of fewer is more than 5 %
MOST_CLASSES: Final = 12  # default: whose numbers are shown
LINEAR_MODEL: Final = "a linear model on small images"
MOST_EQUAL: Final = 5.0  # heuristic: points, up to which a model of images is as good
LABEL_MORE: Final = "label videos of more groups (people, animals, places), the rarest classes first"


def plan_document(
    lists: ProjectLists,
    suggestion: Suggestion,
    samples: Mapping[str, Sequence[Sample]],
    classes: Classes,
    seconds: tuple[float, float],
    *,
    request: Request,
    network_ms: float | None = None,
) -> dict[str, Any]:
    """The plan as `--json` has it, with its lines for people.

    `samples` are of each list, `seconds` of everything, and of the validations and tests, `network_ms` of the
    network for a clip on one thread of a CPU, if there is a limit.
    """
    sizes = {}
    for key, listed in samples.items():
        groups = sorted({sample.group for sample in listed if sample.group is not None})
        names = f" ({', '.join(groups)})" if 0 < len(groups) <= MOST_NAMES else ""
        sizes[key] = f"{ListSize.of(listed)}{names}"
    all_samples = [sample for listed in samples.values() for sample in listed]
    counts, lines = describe_samples(all_samples, classes, windows=lists.window is not None)
    data = suggestion.recipe.data
    trains_network = request.trains_network
    trainings = 1 + len(lists.folds) if trains_network else 0
    times = [each for each in suggestion.times if trains_network or each.stage == "pretrain"]
    if lists.are_given:
        names = ", ".join(getattr(data, key) for key in samples)
        lines.append(f"divided by the lists in {data.root}: {names}")
    if lists.folds:
        lines.append(f"{len(lists.folds)} folds: each group is tested once, by a model that has not seen it")
    if lists.left_out:
        lines.append(f"left out of the annotations: {left_out_text(lists.left_out)}")
    if lists.subjects:
        names = first_names(lists.subjects, MOST_NAMES)
        lines.append(f"bouts of {len(lists.subjects)} subjects ({names}) are taken together; see --subject")
    chosen_on = len(all_samples) // len(lists.folds) if lists.folds else len(samples.get("val", ()))
    if not trains_network:
        more = "" if request.model == "linear" else "; --hours 1 also fine-tunes a network, in about an hour"
        lines.append(f"candidates: linear models only{more}")
    elif not chosen_on:
        lines.append("warning: no validation list to compare a network on; --model network trains one")
    elif chosen_on < FEWEST_TO_CHOOSE:
        size = counted(chosen_on, ListSize.of(all_samples).unit)
        lines.append(f"warning: a network is compared on only {size}{' in each fold' if lists.folds else ''}")
    if network_ms is not None:
        lines.append(size_line(suggestion, network_ms))
    several = f" for {counted(trainings, 'fine-tuning')}" if trainings > 1 else ""
    total = f"all training: about {time_text(seconds[0])}{several}"
    total += f", including {time_text(seconds[1])} for validations and tests" if trains_network else ""
    list_lines = [f"{key}: {size}" for key, size in sizes.items()]
    if suggestion.start is not None:
        over = " spread over the video" if suggestion.start.is_image else ""
        height, width = data.frame_size
        clip = f"{data.frames} frames of {height} x {width} pixels{over}"
        lines.append(f"starts from {suggestion.start.title}, {clip}")
    elif found := weights_in_cache():
        found.sort(key=lambda weights: weights.first_for is None)
        named = ", ".join(f"{weights.name} ({weights.license})" for weights in found[:MOST_NAMES])
        lines.append(f"weights found: {named}; try --init {found[0].name}")
    return {
        "lists": sizes,
        "classes": counts,
        "window": lists.window,
        "network_ms": network_ms,
        "init": None if suggestion.start is None else suggestion.start.name,
        "left_out": left_out_rows(lists.left_out),
        "stages": [time._asdict() for time in times],
        "trainings": trainings,
        "minutes": round(seconds[0] / 60, 1),
        "lines": [*list_lines, *lines, *map(str, times), total],
    }


def size_line(suggestion: Suggestion, network_ms: float) -> str:
    """The size of the network, and whether it is fast enough for `--latency`."""
    data, model = suggestion.recipe.data, suggestion.recipe.model
    height, width = data.frame_size
    size = f"{model.backbone}, {data.frames} frames of {height} x {width} pixels, one view"
    text = f"{size}: {network_ms:.3g} ms a clip on one CPU thread (limit {suggestion.latency:g})"
    if network_ms <= (suggestion.latency or 0):
        return text
    fix = "omit --init, or name smaller weights" if suggestion.start else "no smaller size is left to try"
    return f"warning: {text}; {fix}"


def describe_samples(
    samples: Sequence[Sample], classes: Classes, *, windows: bool
) -> tuple[dict[str, int], list[str]]:
    """The number of samples of each class, and lines about classes, groups and time without a bout.

    `windows`: whether the samples are from annotated recordings.
    """
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    lines = [f"{counted(len(groups), 'group')}: {first_names(groups, MOST_NAMES)}"] if groups else []
    if classes.heads[0].task == "regression":
        return {}, lines
    counts = dict.fromkeys(classes.of_head(classes.heads[0]), 0)
    sources_of: dict[str, set[str]] = defaultdict(set)  # of each class
    behaviors: dict[str, set[str]] = defaultdict(set)  # of each recording
    without = 0
    for sample in samples:
        names = {classes.name(index) for index in indices(sample.labels[0])}
        for name in names:
            counts[name] += 1
            sources_of[name].add(sample.source)
        behaviors[sample.source] |= names - {BACKGROUND}
        without += not names - {BACKGROUND}
    sizes = [f"{name} {number}" for name, number in counts.items()]
    lines = [f"{counted(len(sizes), 'class')}: {first_names(sizes, MOST_CLASSES)}", *lines]
    if windows and without:
        fate = f"class '{BACKGROUND}'" if BACKGROUND in counts else "no class"
        fix = f"label time that nobody watched '{UNSCORED}'"
        lines.append(f"{without} of {counted(len(samples), 'window')} have no bout ({fate}); {fix}")
    if rare := [name for name, sources in sources_of.items() if len(sources) == 1]:
        unit = "group" if groups else "recording" if windows else "video"
        problem = f"{first_names(rare, MOST_NAMES)} can be learned or tested, not both"
        lines.append(f"warning: {problem}: all from one {unit}; add {unit}s with it, or merge classes")
    single = sorted(recording for recording, names in behaviors.items() if len(names) == 1)
    if windows and single:
        problem = f"only one behavior is annotated in {first_names(single, MOST_NAMES)}"
        lines.append(f"warning: {problem}; time with any other counts as time without behavior")
    return counts, lines


def verdict_lines(result: ProjectResult) -> list[str]:
    """The lines of `everest train`."""
    since = " since it resumed" if result.resumed else ""
    took = f"took {time_text(60 * result.minutes)}{since} (planned {time_text(60 * result.planned_minutes)})"
    times = [] if result.clip_time is None else [str(result.clip_time)]
    lines = [*result_lines(result), result.judgment, *times, took, f"page: {result.report}"]
    if result.figure is not None:
        lines.append(f"picture: {result.figure}")
    return [*lines, f"weights: {result.checkpoint}", f"next: {result.next[0]}"]


def result_lines(result: MeasuredTest) -> list[str]:
    """The lines about a test: the metric, the baselines, and the timelines of recordings."""
    always = f"always '{result.majority_class}'"
    baselines = {"chance": result.chance, always: result.majority, LINEAR_MODEL: result.linear_pixels}
    known = {title: value for title, value in baselines.items() if value is not None}
    compared = ", ".join(f"{title} {value_text(result.metric, value)}" for title, value in known.items())
    spread = ""
    if result.interval is not None:
        low, high = result.interval
        narrow = f", too narrow: fewer than {FEW_GROUPS} groups" if result.groups < FEW_GROUPS else ""
        spread = f" (95 % interval: {low:.3g} to {high:.3g}{narrow})"
    size = counted(result.videos, "test video" if result.timelines is None else "test window")
    size += f" of {counted(result.groups, 'group')}" if result.groups < result.videos else ""
    metric = f"{METRICS[result.metric].title} {value_text(result.metric, result.value)}"
    validation = ", ".join(
        f"{each.name} {value_text(result.metric, each.validation)}"
        for each in result.candidates
        if each.validation is not None and each.name not in INPUTS  # see `input_lines`
    )
    lines = [f"{metric}{spread} on {size}", f"compare: {compared}"]
    unseen = f"; on groups that they had not seen: {validation}" if validation else ""
    lines.append(f"model: {result.chosen}, {result.reason}{unseen}")
    unit = "videos" if result.timelines is None else "windows"
    for behavior in result.behaviors[:MOST_CLASSES]:
        share = f"present in {behavior.prevalence:.1f} % of the {unit}"
        if behavior.interval is not None:
            low, high = behavior.interval
            share = f"(95 % interval: {low:.3g} to {high:.3g}), {share}"
        lines.append(f"{behavior.name}: average precision {behavior.ap:.1f} % {share}")
    if len(result.behaviors) > MOST_CLASSES:
        lines.append(f"{len(result.behaviors) - MOST_CLASSES} further classes: see `behaviors` of --json")
    lines += input_lines(result)
    if (scores := result.timelines) is not None:
        recordings = first_names([Path(name).name for name in scores.recordings], MOST_NAMES)
        correct = f"{scores.frame_accuracy:.1f} % (most frequent class {scores.majority_accuracy:.1f} %)"
        means = f"class mean {scores.mean_class_accuracy:.1f} %"
        means += "" if scores.f1 is None else f", F1@50 {scores.f1:.1f} %"
        lines.append(f"timelines of {recordings}: frames correct {correct}, {means}")
    return lines


def input_lines(result: MeasuredTest) -> list[str]:
    """What appearance alone and change alone reach, and whether one of them is enough; see INPUTS."""
    metric = METRICS[result.metric]
    values = {each.name: each.validation for each in result.candidates}
    best: dict[str, tuple[float, InputTest]] = {}  # of each input, on features of images or of an encoder
    for test in result.inputs:
        value, kind = values.get(test.name), test.name.partition("-")[2]
        if value is not None and (kind not in best or (value > best[kind][0]) == metric.higher):
            best[kind] = value, test
    if set(best) != {"mean", "change"}:
        return []
    texts = {kind: f"{test.name} {value_text(result.metric, value)}" for kind, (value, test) in best.items()}
    (low, high), (lost, most_lost) = best["mean"][1].gain, best["change"][1].gain
    unit, kind = (" points", "classifier") if metric.percent else ("", "model")
    gain = f"{low:.3g} to {high:.3g}{unit}"
    if low > 0:
        verdict = f"motion counts: the model is clearly better than appearance alone, by {gain}"
    elif high <= MOST_EQUAL and metric.percent:
        verdict = f"a {kind} of images will do: motion adds {gain}"
    else:
        verdict = f"a {kind} of images may do: motion adds {gain}; label more groups to tell"
    if lost > 0:
        verdict += f"; change alone (model.input: differences) loses {lost:.3g} to {most_lost:.3g}{unit}"
    return [f"inputs: appearance alone {texts['mean']}, change alone {texts['change']}; {verdict}"]


def judge(result: MeasuredTest, *, possible_folds: int | None) -> str:
    """One sentence: whether the model is clearly better than outputs that need no training.

    `--folds` can have `possible_folds`; None: the videos cannot be tested so.
    """
    fix = LABEL_MORE
    if possible_folds is not None:
        fix = f"test on all videos with --folds {possible_folds} and a new --output"
    simple, baseline = result.chance, "guessing"
    if result.majority is not None:
        simple, baseline = result.majority, f"always predicting '{result.majority_class}'"
    baseline = f"{baseline} ({value_text(result.metric, simple)})"
    linear = None if result.chosen == IMAGES else result.linear_pixels
    linear_model = "" if linear is None else f"{LINEAR_MODEL} ({value_text(result.metric, linear)})"
    sign = 1 if METRICS[result.metric].higher else -1
    if sign * result.value <= sign * simple:
        return f"no better than {baseline}: {LABEL_MORE}"
    scores = result.timelines
    if scores is not None and scores.frame_accuracy <= scores.majority_accuracy:
        share = f"{scores.majority_accuracy:.1f} %"
        return f"timelines no better than always the most frequent class ({share}): {LABEL_MORE}"
    if linear is not None and sign * result.value <= sign * linear:
        if not result.folds and result.groups < FEW_GROUPS:
            size = f"{result.videos} tests of {counted(result.groups, 'group')}"
            return f"no better than {linear_model}, but {size} are too few to tell: {fix}"
        trained = any(each.name == NETWORK for each in result.candidates)
        longer = ", or train longer (--set finetune.steps)" if trained else ""
        return f"no better than {linear_model}: {LABEL_MORE}{longer}"
    if result.interval is None:
        return f"no interval: the test has only one group; {fix}"
    if sign * result.interval[sign < 0] <= sign * simple:
        return f"the interval includes {baseline}, so the test cannot tell: {fix}"
    if linear is None:
        better = f"clearly better than {baseline}"
        if result.chosen != IMAGES:
            return better
        fix = "more labels, or weights to start from (--init), would let a network pay"
        return f"{better}; {LINEAR_MODEL} was chosen: {fix}"
    if result.groups < FEWEST_GROUPS:
        return f"no clear difference from {linear_model}: only {counted(result.groups, 'group')}; {fix}"
    low, high = result.difference or result.interval
    name, value = "the interval of the difference", 0.0
    if result.difference is None:  # of a metric that single videos do not have
        name, value = "the interval", linear
    spread = f"{name} is {low:.3g} to {high:.3g}"
    if low <= value <= high:
        return f"no clear difference from {linear_model}: {spread}; {fix}"
    return f"clearly better than {linear_model}: {spread}"
