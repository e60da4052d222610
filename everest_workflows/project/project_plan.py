"""The plan of a project: its lists, a recipe for this machine, and how long all of it takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from everest.checkpoints.describe import WeightSettings, read_weight_settings
from everest.config.settings import DataSettings, Recipe
from everest.engine.schedule import MIN_STEPS, steps_between_validations
from everest.lists.classes import Classes
from everest.lists.sample import ListSize
from everest.lists.sources import read_source
from everest.system.compute import NetworkTime
from everest.system.events import Emit, warning
from everest.system.files import PART_SUFFIX
from everest.system.run_folder import RECIPE_FILE
from everest.system.text import plural, time_text
from everest_workflows.annotations.records import left_out_rows
from everest_workflows.project.adaptation import measure_adaptation
from everest_workflows.project.alarm_rates import find_clip_seconds
from everest_workflows.project.candidates import measure_clip_seconds
from everest_workflows.project.listed_samples import (
    ListedSamples,
    describe_lists,
    describe_samples,
    describe_size,
    list_warnings,
)
from everest_workflows.project.lists import STEP, make_lists
from everest_workflows.project.request import LISTS, ProjectLists, Request
from everest_workflows.project.result import NETWORK
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
MIN_TO_CHOOSE: Final = 20  # default: with fewer validation samples, each is more than 5 %


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The lists of a project, the recipe for them, and the document of `--dry-run --json`."""

    lists: ProjectLists
    suggestion: Suggestion
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedTraining:
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
    planned = _estimate(request, samples, suggestion, emit)
    warnings = list(list_warnings(samples))
    document = _describe(request, samples, planned, warnings)
    return Plan(lists=replace(lists, warnings=warnings), suggestion=planned.suggestion, document=document)


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


def _estimate(
    request: Request, samples: ListedSamples, suggestion: Suggestion, emit: Emit
) -> PlannedTraining:
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
    return PlannedTraining(
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


def _describe(
    request: Request, samples: ListedSamples, planned: PlannedTraining, warnings: Sequence[str]
) -> dict[str, Any]:
    """The document of `--json`, with the lines for people."""
    lists, suggestion = samples.lists, planned.suggestion
    counts, lines = describe_samples(samples.all, samples.classes, windows=lists.window is not None)
    time = suggestion.network_time if request.trains_network or request.init is not None else None
    lines += describe_lists(samples, suggestion.recipe.data)
    trainings, trained, checks = 0, "", " to compute features, and to fit and test linear models"
    if planned.trains_network:
        trainings, of_folds = 1 + len(lists.folds), " in each fold" if lists.folds else ""
        compared = samples.count("val") // max(len(lists.folds), 1)
        if compared < MIN_TO_CHOOSE:
            size = plural(compared, ListSize.of(samples.all).noun)
            lines.append(f"warning: a network is compared on only {size}{of_folds}")
        trained = f" for {plural(trainings, 'fine-tuning')}" if trainings > 1 else ""
        checks = f", including {time_text(planned.check_seconds)} for validations and tests"
    else:
        lines.append("candidates: linear models only (--hours H also fine-tunes a network)")
    lines += [*_describe_model(suggestion, time), *map(str, planned.stages)]
    lines.append(f"all training: about {time_text(planned.seconds)}{trained}{checks}")
    sizes = {key: describe_size(source.samples) for key, source in samples.sources.items()}
    return {
        "lists": sizes,
        "classes": counts,
        "window": lists.window,
        "network_ms": None if time is None else time.alone_ms,
        "init": None if suggestion.start is None else suggestion.start.name,
        "left_out": left_out_rows(lists.left_out),
        "stages": [each._asdict() for each in planned.stages],
        "trainings": trainings,
        "minutes": round(planned.seconds / 60, 1),
        "lines": [
            *(f"{key}: {size}" for key, size in sizes.items()),
            *lines,
            *(f"warning: {text}" for text in warnings),
        ],
        "warnings": warnings,
    }


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
