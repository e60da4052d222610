"""`everest train`: plan, pre-training, fine-tuning and the test of one project."""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final

from everest import stages
from everest.config.heads import Task
from everest.engine.plan import FEWEST_STEPS, steps_between_checkpoints
from everest.errors import DataError, UserError
from everest.evaluation.report import add_summary
from everest.inference.timelines import STEP_AS_TRAINED
from everest.lists.classes import Classes
from everest.lists.sources import read_source
from everest.project.lists import STEP, ProjectLists, make_lists
from everest.project.measure import PAGE_OF_FOLD, measure_folds, measure_run
from everest.project.request import (
    FILES,
    LISTS,
    PRETRAIN,
    RESULT,
    TESTED,
    Request,
    clear,
    find_project,
    tested_before,
    write_document,
)
from everest.project.verdict import answers, doubt_about_pretraining, judge, plan_document, verdict
from everest.suggest.suggestion import Suggestion, suggest_recipe, this_device
from everest.system.events import Report, heading, notice, silent
from everest.system.files import IN_USE_FIX, absolute_keeping_links, check_new_folder, made_folder, write_text
from everest.system.locks import sole_writer
from everest.system.run_folder import FINETUNE, PROJECT, RECIPE, RunFolder
from everest.system.signals import Stopped
from everest.system.text import read_own_json, reading_own

PLANNED_SHARE: Final = 0.95  # of --hours; our choice: the rest is for the plan, the probes and the pages
ROUNDS: Final = 8  # to find the steps whose validations and tests fit into --hours, too
SPARE: Final = 1.2  # our choice: of the hours that a warning names, as speeds vary between measurements
START_SECONDS: Final = 0.5  # our estimate: to start the workers of a validation or a test


def train(
    videos: str | Path,
    *,
    annotations: str | Path | Sequence[str | Path] | None = None,
    unlabeled: str | Path | None = None,
    output: str | Path | None = None,
    group: str | None = None,
    task: Task | None = None,
    folds: int | None = None,
    hours: float | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Train and test a model of your videos in one folder, as `everest train`.

    A call that was stopped or killed goes on where it was when it is repeated.

    Args:
        videos: a folder with a folder of videos for each class, a folder of the lists train.csv, val.csv and
            test.csv, a list, or with `annotations` a folder of recordings.
        annotations: bouts in the recordings, in a file or files of any kind that `everest prepare
            annotations` reads; predictions give way to the bouts of a person.
        unlabeled: a folder or list of videos to pre-train on first.
        output: the folder of the project; None: `runs/train/NAME`.
        group: what keeps videos in one list, as `everest prepare split --group`; None: the column `group`
            of a list, the recording of a window, else each video alone.
        task: single-label, multi-label or regression; None: as the labels show.
        folds: leave each of so many parts of the groups out in turn; the last model learns from all videos.
        hours: about so many in all, with validations and tests, by the speed measured on this machine.
        overrides: `section.key=value` texts, which win over the suggested recipe.
        overwrite: replace the project in `output`.
        dry_run: only make the plan, and write nothing.
        report: receives the progress and notices (everest.system.events).
    Returns:
        The document of `everest train --json`, with `dry_run` the plan.
    Raises:
        UserError: the videos, the labels or the environment do not allow it; see everest.errors.
    """
    files = [annotations] if isinstance(annotations, str | Path) else annotations or ()
    request = Request(
        videos=_path_text(videos),
        annotations=sorted(set(map(_path_text, files))),
        unlabeled=None if unlabeled is None else _path_text(unlabeled),
        group=group,
        task=task,
        folds=folds,
        hours=hours,
        overrides=with_warmup(overrides),
    )
    started, folder = monotonic(), Path(output or Path("runs", "train", Path(request.videos).stem)).absolute()
    request.check(folder)
    check_new_folder(folder, overwrite=True)  # only whether it can be written
    if dry_run:
        return _try_plan(request, tested_before(folder), report)
    try:
        with made_folder(folder), sole_writer(folder / PROJECT):
            found = find_project(folder, request, overwrite=overwrite)
            project = found or _start(request, folder, report)
            try:
                return _train(project, folder, report, started=started, resumed=found is not None)
            except DataError as error:  # the lists and the run keep the videos that were there at the start
                raise DataError(f"{error}; repair the videos, then repeat with --overwrite") from error
    except Stopped as stopped:  # whose message names the folder of a stage
        name = signal.Signals(stopped.number).name
        raise Stopped(stopped.number, f"{name}: saved in {folder}; the same command resumes") from stopped


def _path_text(path: str | Path) -> str:
    """An absolute path, the same from wherever it is named; a link keeps its name."""
    return str(absolute_keeping_links(Path(path)) if ".." in Path(path).parts else Path(path).absolute())


def with_warmup(overrides: Sequence[str]) -> list[str]:
    """The overrides; a number of steps brings a warm-up of a tenth, which fits it."""
    values = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    added = [
        f"{stage}.warmup_steps={int(steps) // 10}"
        for stage in ("pretrain", "finetune")
        if (steps := values.get(f"{stage}.steps", "")).isdecimal() and f"{stage}.warmup_steps" not in values
    ]
    return [*overrides, *added]


def _make_plan(
    request: Request, folder: Path, tested: Sequence[str], report: Report
) -> tuple[ProjectLists, str, dict[str, Any]]:
    """Write the lists into a folder; returns them, the text of a recipe, and the plan as `--json` has it."""
    lists = make_lists(request, folder / LISTS, report, tested=tested)
    suggestion = suggest_recipe(
        lists.section,
        this_device(),
        purpose="scratch" if request.unlabeled is None else "finetune",
        output=folder / RECIPE,
        overrides=request.overrides,
    )
    if (doubt := doubt_about_pretraining(suggestion.facts)) is not None:
        report(notice(doubt))
    data = suggestion.recipe.data
    train = read_source(data, "train", labeled=True)
    classes, samples = Classes.of(train, data), {"train": train.samples}
    for key in ("val", "test"):
        if getattr(data, key) is not None:
            samples[key] = read_source(data, key, labeled=True, classes=classes).samples
    all_seconds = partial(_all_seconds, {key: len(listed) for key, listed in samples.items()}, lists)
    if request.hours is not None:
        suggestion = _within_hours(request.hours, suggestion, all_seconds, report)
    return lists, suggestion.text, plan_document(lists, suggestion, samples, classes, all_seconds(suggestion))


def _within_hours(
    hours: float,
    suggestion: Suggestion,
    all_seconds: Callable[[Suggestion], tuple[float, float]],
    report: Report,
) -> Suggestion:
    """The suggestion with so many steps that all training, validations and tests take these hours.

    Args:
        all_seconds: see `_all_seconds`.
    """
    budget = 3600 * PLANNED_SHARE * hours
    of_stage = budget
    for _ in range(ROUNDS):  # the number of validations depends on the steps
        suggestion = suggestion.within(of_stage)
        of_stage *= min(1.0, budget / all_seconds(suggestion)[0])
    for time in suggestion.times:
        if time.steps < FEWEST_STEPS and time.clips_per_second is not None:
            needed = suggestion.within(FEWEST_STEPS * time.batch_size / time.clips_per_second)
            enough = SPARE * all_seconds(needed)[0] / 3600 / PLANNED_SHARE
            few = f"--hours {hours:g} leaves {time.steps} steps for {time.stage}"
            more = f"give --hours {math.ceil(100 * enough) / 100:g} for the {FEWEST_STEPS} that it needs"
            report(notice(f"warning: {few}; {more}"))
    return suggestion


def _all_seconds(
    sizes: Mapping[str, int], lists: ProjectLists, suggestion: Suggestion
) -> tuple[float, float]:
    """The time of all stages, validations and tests; and that of the validations and tests.

    The latter is by the speed of fine-tuning, which is slower.

    Args:
        sizes: the samples of each list.
    """
    recipe, time, folds = suggestion.recipe, suggestion.times[-1], len(lists.folds)
    seconds = sum(
        (1 + folds if each.stage == "finetune" else 1) * (each.seconds or 0) for each in suggestion.times
    )
    between = steps_between_checkpoints(time.steps, sizes["train"], time.batch_size)
    validations = recipe.finetune.epochs or math.ceil(time.steps / between)
    val, test = sizes.get("val", 0), sizes.get("test", 0)
    if folds:  # each sample is once in a validation list and once in a test list
        val = test = sizes["train"]
    compared = max(folds, 1) * sum(sizes.values())  # with a linear model
    clips = validations * val + recipe.eval.clips * recipe.eval.crops * test + compared
    if lists.window is not None:  # timelines have more windows than lists
        clips += round(STEP / STEP_AS_TRAINED) * (val + test)
    starts = (validations * (val > 0) + 1) * max(folds, 1)
    checks = START_SECONDS * starts + clips / (time.clips_per_second or math.inf)
    return seconds + checks, checks


def _try_plan(request: Request, tested: Sequence[str], report: Report) -> dict[str, Any]:
    """The plan; nothing is kept of it."""
    with TemporaryDirectory(prefix="everest-train-") as trial:
        return _make_plan(request, Path(trial), tested, report)[2]


def _start(request: Request, folder: Path, report: Report) -> dict[str, Any]:
    """Make the plan, and write it. After an error nothing of it is left.

    project.json without a plan is written first, and marks the folder as ours.
    """
    tested = tested_before(folder)
    if (folder / RECIPE).exists():  # a project, which is removed only if its successor can be made
        _try_plan(request, tested, silent)
    clear(folder)
    try:
        write_document(folder / PROJECT, {"request": asdict(request), TESTED: tested})
        checksums = request.checksums()  # before they are read
        lists, recipe, plan = _make_plan(request, folder, tested, report)
        for line in plan["lines"]:
            report(heading(line))
        write_text(folder / RECIPE, recipe)
        document = {"request": asdict(request), FILES: checksums, **asdict(lists)}
        document["planned_minutes"] = plan["minutes"]
        write_document(folder / PROJECT, document)
    except UserError:
        clear(folder)
        raise
    return document


def _train(
    project: dict[str, Any], folder: Path, report: Report, *, started: float, resumed: bool
) -> dict[str, Any]:
    """Run the stages of a document of project.json; each resumes its own run.

    Args:
        started: the time of `monotonic` at the start of this call.
        resumed: whether an earlier call has begun the project.
    """
    if (folder / RESULT).exists():
        report(notice(f"{folder}: already finished; use --overwrite to train again"))
        with reading_own(folder / RESULT, fix=IN_USE_FIX):
            finished = read_own_json(folder / RESULT, fix=IN_USE_FIX)
            verdict(finished)  # reads all that is shown
        return finished
    request, folds, init = project["request"], project["folds"], None

    def run(stage: Callable[..., Path], output: Path, more: Sequence[str] = (), **options: Any) -> Path:
        overwrite = not RunFolder(output).is_run()  # a folder without a run may hold a user's files
        overrides = [*request["overrides"], *more]
        return stage(
            folder / RECIPE, output=output, overrides=overrides, overwrite=overwrite, report=report, **options
        )

    if request["unlabeled"] is not None:
        report(heading("pre-training"))
        init = run(stages.pretrain, folder / PRETRAIN)
    finetune = partial(run, stages.finetune, init=init)
    pooled = measure_folds(project, folder, finetune, report) if folds else None
    report(heading("fine-tuning on all videos" if folds else "fine-tuning"))
    weights = RunFolder(finetune(folder / FINETUNE))
    measured = pooled or measure_run(weights.path, folder, project, report)
    checkpoint = f"--checkpoint {shlex.quote(str(weights.path))}"
    command = f"everest predict VIDEO {checkpoint}"
    if project["window"] is not None:
        command = f"everest timeline VIDEO {checkpoint} --smooth {measured['smooth']:g} --output bouts.csv"
    document = {
        **measured,
        "checkpoint": str(weights.best if weights.best.exists() else weights.weights),
        "judgment": judge(measured, possible_folds=project["possible_folds"]),
        "minutes": round((monotonic() - started) / 60, 1),
        "planned_minutes": project["planned_minutes"],
        "resumed": resumed,
        "next": [command],
    }
    links = {f"fold {number}": PAGE_OF_FOLD.format(number) for number in range(1, len(folds) + 1)}
    lines = [*answers(document), document["judgment"]]
    add_summary(Path(document["report"]), lines, document.get("figure"), links)
    write_document(folder / RESULT, document)
    return document
