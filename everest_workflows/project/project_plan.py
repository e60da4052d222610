"""The plan of a project: its lists, a recipe for this machine, and how long all of it takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from everest.checkpoints.describe import WeightSettings, read_weight_settings
from everest.config.settings import DataSettings, Recipe
from everest.engine.schedule import MIN_STEPS, steps_between_validations
from everest.errors import join_first
from everest.lists.classes import Classes
from everest.lists.labels import Label, class_indices
from everest.lists.reading import SampleList
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import read_source
from everest.prepare.check import difference_text, differences_by_headers
from everest.system.compute import NetworkTime
from everest.system.events import Emit, warning
from everest.system.files import PART_SUFFIX
from everest.system.run_folder import RECIPE_FILE
from everest.system.text import plural, time_text
from everest_workflows.annotations.bout import BACKGROUND, UNSCORED
from everest_workflows.annotations.records import left_out_rows, left_out_text
from everest_workflows.project.adaptation import measure_adaptation
from everest_workflows.project.alarm_rates import find_clip_seconds
from everest_workflows.project.candidates import measure_clip_seconds
from everest_workflows.project.lists import STEP, check_copies, make_lists
from everest_workflows.project.request import LISTS, ProjectLists, Request
from everest_workflows.project.result import NETWORK
from everest_workflows.project.summary import MAX_CLASSES, MAX_NAMES
from everest_workflows.recordings.alarms import check_normal
from everest_workflows.recordings.timelines import STEP_AS_TRAINED
from everest_workflows.suggest.model_size import NETWORK_FRACTION, fit_latency
from everest_workflows.suggest.rules import find_device
from everest_workflows.suggest.suggestion import StageTime, Suggestion, suggest_recipe

NEW_LISTS: Final = f".{LISTS}{PART_SUFFIX}"  # the folder of lists until the plan is made
PLANNED_FRACTION: Final = 0.95  # of --hours; heuristic: the rest is for the plan, the probes and the pages
CHECK_SECONDS: Final = 3.0  # estimate: to start a test of the best linear candidate, and to write its page
FIT_SECONDS: Final = 0.0028  # estimate: to fit all linear candidates, for each sample and class
START_SECONDS: Final = 0.5  # estimate: to start the workers of a validation or a test
DIFFERENCE_FIXES: Final = {  # see `everest.prepare.check.class_differences`
    "frame rate": "record all classes alike, or --set data.fps=N with the lowest rate",
    "frame size": "record all classes alike, or shrink all to the smallest by everest prepare encode",
}
MIN_TO_CHOOSE: Final = 20  # default: with fewer validation samples, each is more than 5 %


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The lists of a project, the recipe for them, and the document of `--dry-run --json`."""

    lists: ProjectLists
    suggestion: Suggestion
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ListedSamples:
    """The labeled samples of a project."""

    lists: ProjectLists
    sources: Mapping[str, SampleList]  # by the keys of the lists
    classes: Classes

    @property
    def all(self) -> tuple[Sample, ...]:
        return tuple(chain.from_iterable(source.samples for source in self.sources.values()))

    def count(self, key: str) -> int:
        """The number of samples of a list; of folds, each sample is validated and tested once."""
        source = self.sources.get("train" if self.lists.folds else key)
        return 0 if source is None else len(source.samples)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is trained, and for how long."""

    suggestion: Suggestion  # with as many steps as --hours allows
    trains_network: bool
    stages: Sequence[StageTime]
    seconds: float  # of all
    check_seconds: float  # of them, of validations and tests


def make_plan(request: Request, folder: Path, emit: Emit) -> Plan:
    """Write the lists into `NEW_LISTS` of a folder, and plan the stages of a project."""
    start = None  # the weights; missing ones are an error before the videos are read
    if request.init is not None:
        start = read_weight_settings(request.init, on_cpu=None if request.latency is None else True)
    lists = make_lists(request, folder / NEW_LISTS, emit)
    suggestion = _suggest(request, lists.section, start, folder / RECIPE_FILE)
    samples = _read_samples(request, lists, suggestion.recipe.data)
    estimate = _estimate(request, samples, suggestion, emit)
    warnings = list(_list_warnings(samples))
    document = _describe(request, samples, estimate, warnings)
    return Plan(lists=replace(lists, warnings=warnings), suggestion=estimate.suggestion, document=document)


def _suggest(
    request: Request, section: Mapping[str, Any], start: WeightSettings | None, output: Path
) -> Suggestion:
    """The recipe for the lists of a `data` section and this machine; with --latency, of a model that fits."""
    suggestion = suggest_recipe(
        section,
        find_device(),
        purpose="finetune" if request.compares_views else "scratch",
        output=output,
        overrides=request.overrides,
        start=start,
    )
    return suggestion if request.latency is None else fit_latency(suggestion, request.latency)


def _read_samples(request: Request, lists: ProjectLists, data: DataSettings) -> ListedSamples:
    """The lists that a recipe names; with --normal, alarms must be possible."""
    sources = {"train": read_source(data, "train", labeled=True)}
    classes = Classes.of(sources["train"], data)
    for key in ("val", "test"):
        if getattr(data, key) is not None:
            sources[key] = read_source(data, key, labeled=True, classes=classes)
    if request.normal is not None:
        check_normal(classes, request.normal)
        find_clip_seconds(lists.window, data)
    return ListedSamples(lists=lists, sources=sources, classes=classes)


def _estimate(request: Request, samples: ListedSamples, suggestion: Suggestion, emit: Emit) -> Estimate:
    """Measure how long the stages take on this machine, and shorten them to --hours."""
    adaptation = []
    if request.adapts:
        assert request.init is not None
        recipe, on_cpu = suggestion.recipe, suggestion.device == "cpu"
        adaptation = [measure_adaptation(recipe, request.init, request.overrides, on_cpu=on_cpu)]
    adapting = sum(stage.seconds or 0 for stage in adaptation)
    trains_network = request.trains_network
    if trains_network or request.compares_views:
        suggestion = suggestion.timed()
        if request.hours is not None:
            planned = suggestion
            suggestion = _fit_to_hours(request.hours - adapting / 3600, planned, samples)
            if few := _find_few_steps(planned, suggestion):
                trains_network = request.model == NETWORK or request.compares_views
                result = "a model hardly learns" if trains_network else "no network is trained"
                emit(warning(f"--hours {request.hours:g} leaves {few}, so {result}; give more hours"))
    if trains_network or request.compares_views:
        seconds, checks = _estimate_seconds(suggestion, samples)
    else:
        seconds, checks = _estimate_linear_seconds(suggestion.recipe, samples), 0.0
    stages = [each for each in suggestion.times if trains_network or each.stage == "pretrain"]
    return Estimate(
        suggestion=suggestion,
        trains_network=trains_network,
        stages=[*adaptation, *stages],
        seconds=seconds + adapting,
        check_seconds=checks,
    )


def _find_few_steps(planned: Suggestion, shortened: Suggestion) -> str | None:
    """The stage that has too few steps after it was shortened; data sets of few clips need few steps."""
    for time, before in zip(shortened.times, planned.times, strict=True):
        if time.steps < min(MIN_STEPS, before.steps):
            return f"{plural(time.steps, 'step')} for {time.stage}"
    return None


def _fit_to_hours(hours: float, suggestion: Suggestion, samples: ListedSamples) -> Suggestion:
    """The suggestion with as many steps as these hours allow, with all validations and tests."""
    budget = 3600 * PLANNED_FRACTION * hours
    # Parts of the budget for each stage; the time of everything grows with the part.
    fitting = bisect_right(
        range(1, 1001),
        budget,
        key=lambda part: _estimate_seconds(suggestion.within(part / 1000 * budget), samples)[0],
    )
    return suggestion.within(fitting / 1000 * budget)


def _estimate_seconds(suggestion: Suggestion, samples: ListedSamples) -> tuple[float, float]:
    """The seconds of all stages, validations and tests, and those of the validations and tests alone.

    The latter are estimated by the speed of fine-tuning, which is slower.
    """
    recipe, lists = suggestion.recipe, samples.lists
    times = suggestion.times
    time = times[-1]
    folds = len(lists.folds)
    seconds = sum(stage.seconds or 0 for stage in times) + folds * (time.seconds or 0)
    between = steps_between_validations(time.steps, samples.count("train"), time.batch_size)
    validations = recipe.finetune.epochs or math.ceil(time.steps / between)
    val, test = samples.count("val"), samples.count("test")
    compared = 2 * len(samples.all)  # features of all, and the network's outputs for the center views
    clips = validations * val + recipe.eval.clips * recipe.eval.crops * test + compared
    if lists.window is not None:  # timelines have more windows than lists
        clips += round(STEP / STEP_AS_TRAINED) * (val + test)
    starts = (validations * (val > 0) + 1) * max(folds, 1)
    checks = START_SECONDS * starts + clips / (time.clips_per_second or math.inf)
    return seconds + checks, checks


def _estimate_linear_seconds(recipe: Recipe, samples: ListedSamples) -> float:
    """The seconds to compute the features of all samples, and to fit and test the linear candidates."""
    num_samples = len(samples.all)
    read = (num_samples + samples.count("test")) * measure_clip_seconds(recipe, samples.classes)
    fits = FIT_SECONDS * num_samples * samples.classes.heads[0].outputs
    comparisons = 1 + len(samples.lists.folds)  # the last one chooses the model that learns from all
    return read + comparisons * (CHECK_SECONDS + fits)


def _list_warnings(samples: ListedSamples) -> Iterator[str]:
    """What may make the test too easy."""
    parts = {
        sample.path: name if samples.lists.are_given else sample.group_or_path
        for name, source in samples.sources.items()
        for sample in source.samples
    }
    yield from check_copies(parts)
    yield from check_groups(samples.all)
    for row in differences_by_headers(replace(samples.sources["train"], samples=samples.all).by_class):
        yield f"{difference_text(row)}; {DIFFERENCE_FIXES[row['of']]}"


def _describe(
    request: Request, samples: ListedSamples, estimate: Estimate, warnings: Sequence[str]
) -> dict[str, Any]:
    """The document of `--json`, with the lines for people."""
    lists, suggestion = samples.lists, estimate.suggestion
    counts, lines = describe_samples(samples.all, samples.classes, windows=lists.window is not None)
    time = suggestion.network_time if request.trains_network or request.init is not None else None
    lines += _describe_lists(lists, suggestion.recipe.data, samples.sources)
    trainings, trained, checks = 0, "", " to compute features, and to fit and test linear models"
    if estimate.trains_network:
        trainings, of_folds = 1 + len(lists.folds), " in each fold" if lists.folds else ""
        compared = samples.count("val") // max(len(lists.folds), 1)
        if compared < MIN_TO_CHOOSE:
            size = plural(compared, ListSize.of(samples.all).noun)
            lines.append(f"warning: a network is compared on only {size}{of_folds}")
        trained = f" for {plural(trainings, 'fine-tuning')}" if trainings > 1 else ""
        checks = f", including {time_text(estimate.check_seconds)} for validations and tests"
    else:
        lines.append("candidates: linear models only (--hours H also fine-tunes a network)")
    lines += [*_describe_model(suggestion, time), *map(str, estimate.stages)]
    lines.append(f"all training: about {time_text(estimate.seconds)}{trained}{checks}")
    sizes = {key: _describe_size(source.samples) for key, source in samples.sources.items()}
    return {
        "lists": sizes,
        "classes": counts,
        "window": lists.window,
        "network_ms": None if time is None else time.alone_ms,
        "init": None if suggestion.start is None else suggestion.start.name,
        "left_out": left_out_rows(lists.left_out),
        "stages": [each._asdict() for each in estimate.stages],
        "trainings": trainings,
        "minutes": round(estimate.seconds / 60, 1),
        "lines": [
            *(f"{key}: {size}" for key, size in sizes.items()),
            *lines,
            *(f"warning: {text}" for text in warnings),
        ],
        "warnings": warnings,
    }


def _describe_size(samples: Sequence[Sample]) -> str:
    """The number of samples of a list, with the names of a few groups."""
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    names = f" ({', '.join(groups)})" if 0 < len(groups) <= MAX_NAMES else ""
    return f"{ListSize.of(samples)}{names}"


def _describe_lists(
    lists: ProjectLists, data: DataSettings, sources: Mapping[str, SampleList]
) -> Iterator[str]:
    """How the samples are divided, and what of the annotations counts."""
    if lists.are_given:
        yield f"divided by the lists in {data.root}: {', '.join(getattr(data, key) for key in sources)}"
    if lists.folds:
        yield f"{len(lists.folds)} folds: each group is tested once, by a model that has not seen it"
    if lists.left_out:
        yield f"left out of the annotations: {left_out_text(lists.left_out)}"
    if lists.subjects:
        names = join_first(lists.subjects, MAX_NAMES)
        yield f"bouts of {len(lists.subjects)} subjects ({names}) are taken together; see --subject"


def _describe_model(suggestion: Suggestion, time: NetworkTime | None) -> Iterator[str]:
    """The size of a timed network, whether it is fast enough, and the weights to start from."""
    data, start = suggestion.recipe.data, suggestion.start
    height, width = data.frame_size
    clip = f"{plural(data.frames, 'frame')} of {height} x {width} pixels"
    if time is not None and suggestion.latency is not None:
        aim = NETWORK_FRACTION * suggestion.latency
        comparison = "at most" if time.alone_ms <= aim else "more than"
        rest = "; histograms of motion may take the rest" if data.frames > 1 else ""
        limit = f"{comparison} {aim:g} of {suggestion.latency:g} ms{rest}"
        speed = f"{time.alone_ms:.3g} ms a clip by PyTorch on one CPU thread ({limit})"
        text = f"{suggestion.recipe.model.backbone}, {clip}, one view: {speed}"
        fix = "omit --init, or name smaller weights" if start else "no smaller size is left to try"
        yield text if suggestion.is_fast else f"warning: {text}; {fix}"
        for busy in time.warnings:
            yield f"{busy}; plan on an idle machine if the size of the model matters"
    if start is not None:
        over = " spread over the video" if start.is_image and data.frames > 1 else ""
        yield f"starts from {start.title}, {clip}{over}"


def check_groups(samples: Sequence[Sample]) -> Iterator[str]:
    """Warns if each group of several samples has one class: a model may learn its light or camera."""
    labels: dict[str, list[Label]] = defaultdict(list)
    for sample in samples:
        if class_indices(sample.labels[0]):  # not of numbers, nor of a window without a bout
            labels[sample.group_or_path].append(sample.labels[0])
    several = [listed for listed in labels.values() if len(listed) > 1]
    if several and all(len(set(listed)) == 1 for listed in several):
        problem = "every group has clips of one class only, so a model may learn the light, camera or place"
        yield f"{problem} of groups, and the test cannot tell; film several classes in each group"


def describe_samples(
    samples: Sequence[Sample], classes: Classes, *, windows: bool
) -> tuple[dict[str, int], list[str]]:
    """The number of samples of each class, and lines about classes, groups and time without a bout.

    `windows`: whether the samples are from annotated recordings.
    """
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    lines = [f"{plural(len(groups), 'group')}: {join_first(groups, MAX_NAMES)}"] if groups else []
    if classes.heads[0].task == "regression":
        return {}, lines
    counts = dict.fromkeys(classes.names_of_head(classes.heads[0]), 0)
    sources_of: dict[str, set[str]] = defaultdict(set)  # of each class
    behaviors: dict[str, set[str]] = defaultdict(set)  # of each recording
    without = 0
    for sample in samples:
        names = {classes.name(index) for index in class_indices(sample.labels[0])}
        for name in names:
            counts[name] += 1
            sources_of[name].add(sample.group_or_path)
        behaviors[sample.group_or_path] |= names - {BACKGROUND}
        without += not names - {BACKGROUND}
    groups_of = {
        name: f" ({plural(len(sources), 'group')})" for name, sources in sources_of.items() if groups
    }
    sizes = [f"{name} {number}{groups_of.get(name, '')}" for name, number in counts.items()]
    lines = [f"{plural(len(sizes), 'class')}: {join_first(sizes, MAX_CLASSES)}", *lines]
    if windows and without:
        fate = f"class '{BACKGROUND}'" if BACKGROUND in counts else "no class"
        fix = f"label time that nobody watched '{UNSCORED}'"
        lines.append(f"{without} of {plural(len(samples), 'window')} have no bout ({fate}); {fix}")
    if rare := [name for name, sources in sources_of.items() if len(sources) == 1]:
        unit = "group" if groups else "recording" if windows else "video"
        problem = f"{join_first(rare, MAX_NAMES)} can be learned or tested, not both"
        lines.append(f"warning: {problem}: all from one {unit}; add {unit}s with it, or merge classes")
    single = sorted(recording for recording, names in behaviors.items() if len(names) == 1)
    if windows and single:
        problem = f"only one behavior is annotated in {join_first(single, MAX_NAMES)}"
        lines.append(f"warning: {problem}; time with any other counts as time without behavior")
    return counts, lines
