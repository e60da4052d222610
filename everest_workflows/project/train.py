"""`everest train`: plan, pre-training, fine-tuning and the test of one project."""

from __future__ import annotations

import shlex
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from everest import stages
from everest.config.settings import Recipe
from everest.errors import DataError, UserError
from everest.evaluation.page import PAGE, write_evaluation_page
from everest.models.classifier import Classifier
from everest.system.accelerator import restore_process_state
from everest.system.events import Emit, heading, ignore_event, notice
from everest.system.files import IN_USE_FIX, check_new_folder, make_folder, write_text
from everest.system.locks import sole_writer
from everest.system.moved_folder import move_files, moved, record_path
from everest.system.run_folder import RECIPE_FILE
from everest.system.signals import Stopped
from everest.system.text import time_text
from everest_workflows.annotations.formats import recognize_format
from everest_workflows.project.adaptation import adapt_weights
from everest_workflows.project.candidates import FeatureTable
from everest_workflows.project.comparison import Comparison
from everest_workflows.project.feature_kinds import Starts
from everest_workflows.project.measure import OUTPUTS, measure_candidates, pool_folds, pool_outputs
from everest_workflows.project.project_plan import NEW_LISTS, make_plan
from everest_workflows.project.request import (
    LISTS,
    PRETRAIN,
    REPORT,
    Project,
    Request,
    clear_project,
    find_project,
    read_project,
    write_document,
)
from everest_workflows.project.result import ClipTime, MeasuredTest, ProjectResult
from everest_workflows.project.summary import judge, make_summary, write_methods
from everest_workflows.recordings.project_folder import FOLDS_FOLDER, PROJECT_FILE, RESULT_FILE
from everest_workflows.suggest.model_size import measure_network_time, measure_reading_ms


@restore_process_state()
def train(
    videos: str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore_event,
    **options: Any,
) -> dict[str, Any]:
    """Train and test a model of your videos in one folder, as `everest train`.

    A call that was stopped or killed goes on where it was when it is repeated.

    Args:
        videos: a folder with a folder of videos for each class, a folder of the lists train.csv, val.csv and
            test.csv, a list, or with `annotations` a folder of recordings.
        output: the folder of the project; None: `runs/train/NAME`.
        overwrite: replace the project in `output`.
        dry_run: only make the plan, and write nothing.
        emit: receives the progress and notices (everest.system.events).
        options: the other options of `everest train`, by the names of `ProjectOptions`: annotations (a file
            or several), observers, subject, unlabeled, init, group, folds, hours, model, latency, task and
            overrides (`section.key=value` texts).
    Returns:
        The document of `everest train --json`, with `dry_run` the plan.
    Raises:
        UserError: the videos, the labels or the environment do not allow it; see everest.errors.
    """
    request = Request.of(videos, **options)
    started = monotonic()
    videos = Path(request.videos)
    name = videos.stem if videos.is_file() else videos.absolute().name
    folder = Path(output or Path("runs", "train", name)).absolute()
    request.check(folder)
    check_new_folder(folder, overwrite=True)  # only whether it can be written
    if dry_run:
        with TemporaryDirectory(prefix="everest-train-") as trial:
            return make_plan(request, Path(trial), emit).document
    try:
        with make_folder(folder), sole_writer(folder / PROJECT_FILE):
            resumed = find_project(folder, request, overwrite=overwrite)
            project = resumed or _start(request, folder, emit)
            try:
                result = _train(project, folder, emit, started=started, resumed=resumed is not None)
                return result.dump()
            except DataError as error:  # the lists and the run keep the videos that were there at the start
                raise DataError(f"{error}; repair the videos, then repeat with --overwrite") from error
            except KeyboardInterrupt as interrupt:  # between two stages
                raise Stopped(signal.SIGINT, "interrupted") from interrupt
    except Stopped as stopped:  # whose message names the folder of a stage
        name = signal.Signals(stopped.signal).name
        raise Stopped(stopped.signal, f"{name}: saved in {folder}; the same command resumes") from stopped


def _start(request: Request, folder: Path, emit: Emit) -> Project:
    """Make the plan and write it; after an error, an earlier project is still there, or nothing.

    project.json without a plan marks the folder as ours while the files of an earlier project are removed.
    """
    new_lists = folder / NEW_LISTS
    shutil.rmtree(new_lists, ignore_errors=True)  # of a killed call
    try:
        checksums = request.checksums()  # before they are read
        plan = make_plan(request, folder, emit)
        write_document(folder / PROJECT_FILE, {"request": asdict(request)})
        clear_project(folder)
        record_path(folder)
        for line in plan.document["lines"]:
            emit(heading(line))
        lists = move_files(new_lists, folder / LISTS, vars(plan.lists))
        project = Project(
            request=request,
            files=checksums,
            planned_minutes=plan.document["minutes"],
            trains_network=plan.document["trainings"] > 0,
            **lists,
        )
        write_text(folder / RECIPE_FILE, replace(plan.suggestion, section=lists["section"]).text)
        write_document(folder / PROJECT_FILE, asdict(project))
    except UserError:
        if not (folder / RECIPE_FILE).exists():
            clear_project(folder)
            (folder / PROJECT_FILE).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(new_lists, ignore_errors=True)
    return read_project(folder)


def _train(project: Project, folder: Path, emit: Emit, *, started: float, resumed: bool) -> ProjectResult:
    """Run the stages of a project; each resumes its own run. This call `started` at a time of `monotonic`."""
    if (folder / RESULT_FILE).exists():
        emit(notice(f"{folder}: already finished; use --overwrite to train again"))
        result = ProjectResult.read(folder / RESULT_FILE, fix=IN_USE_FIX)
        return replace(result, next=[shlex.join(moved(shlex.split(each), folder)) for each in result.next])
    record_path(folder)
    init = project.request.init
    starts = Starts(init=init)
    comparison = Comparison(project=project, folder=folder, output=folder, starts=starts, emit=emit)
    if project.request.adapts:
        assert init is not None
        emit(heading("adapting the weights to the unlabeled videos"))
        overrides = project.request.overrides
        adapted = adapt_weights(comparison.recipe, init, overrides, folder / PRETRAIN, emit)
        comparison = replace(comparison, starts=Starts(init=init, adapted=str(adapted)))
    elif project.request.compares_views:
        emit(heading("pre-training"))
        pretrained = comparison.train_stage(stages.pretrain, folder / PRETRAIN)
        comparison = replace(comparison, starts=Starts(init=str(pretrained)))
    with comparison.reading_features() as table:
        fold_tests = _train_folds(comparison, table)
        if fold_tests:
            outputs = pool_outputs(folder, fold_tests)
            model, choice = comparison.compare_folds(table, outputs, [fold.choice for fold in fold_tests])
            test, page = pool_folds(comparison, model, choice, outputs, fold_tests)
        else:
            model, candidates, choice = comparison.compare(table)
            test, page = measure_candidates(comparison, table, model, candidates, choice)
        clip_time = _measure_clip_time(model, comparison, table)
    judgment = judge(test, possible_folds=project.possible_folds)
    methods = write_methods(project, choice, comparison.recipe, test)
    commands = list_next_commands(project.request, test, comparison.recipe, folder)
    conclusions = [judgment, *([] if clip_time is None else [str(clip_time)])]
    links = {f"fold {number}": Path(fold.report) for number, fold in enumerate(fold_tests, start=1)}
    title = f"{folder.name}, all folds together" if fold_tests else folder.name
    summary = make_summary(title, test, *conclusions, methods=methods, next_commands=commands, links=links)
    write_evaluation_page(folder / REPORT, *page, summary)
    result = ProjectResult(
        **vars(test),
        judgment=judgment,
        minutes=round((monotonic() - started) / 60, 1),
        planned_minutes=project.planned_minutes,
        resumed=resumed,
        clip_time=clip_time,
        methods=methods,
        next=commands,
    )
    write_document(folder / RESULT_FILE, result.dump())
    return result


def list_next_commands(request: Request, test: MeasuredTest, recipe: Recipe, folder: Path) -> list[str]:
    """The commands to run next: with --latency exports, else predictions or bouts in the format read."""
    checkpoint = ["--checkpoint", str(folder)]
    if test.timelines is not None:
        of_boris = {recognize_format(Path(file)) for file in request.annotations} <= {"boris", "boris-table"}
        bouts = "bouts.boris" if of_boris else "bouts.csv"
        rules = ["--smooth", f"{test.timelines.smooth:g}", "--output", bouts]
        return [shlex.join(["everest", "timeline", "VIDEO", *checkpoint, *rules])]
    if request.latency is None and request.normal is None:
        return [shlex.join(["everest", "predict", "VIDEO", *checkpoint])]
    export = ["everest", "export", str(folder), "--to", "onnx", "--output"]
    calibrate = ["--precision", "int8", "--calibrate", str(Path(recipe.data.root, recipe.data.train or ""))]
    return [shlex.join([*export, "model.onnx"]), shlex.join([*export, "model-int8.onnx", *calibrate])]


def _measure_clip_time(model: Classifier, comparison: Comparison, table: FeatureTable) -> ClipTime | None:
    """The time of the selected model for a clip; None without --latency."""
    limit = comparison.project.request.latency
    if limit is None:
        return None
    readable = table.readable([sample for listed in comparison.samples.values() for sample in listed])
    return ClipTime(
        network_ms=round(measure_network_time(model).alone_ms, 2),
        reading_ms=round(measure_reading_ms(model.clip, readable), 2),
        limit_ms=limit,
    )


def _train_folds(comparison: Comparison, table: FeatureTable) -> list[MeasuredTest]:
    """Train and test the candidates of the remaining folds; returns the tests of all."""
    project = comparison.project
    links = {"The result of all folds": comparison.folder / REPORT / PAGE}
    results = []
    started, done = monotonic(), 0
    for number, lists in enumerate(project.folds, start=1):
        fold = replace(comparison, fold=lists, output=comparison.folder / FOLDS_FOLDER / str(number))
        file = fold.output / RESULT_FILE
        if not file.exists() or not (fold.output / REPORT / OUTPUTS).exists():
            title, left = f"fold {number} of {len(project.folds)}", ""
            if done:  # the model of all videos takes as long as a fold
                seconds = (monotonic() - started) / done * (len(project.folds) + 2 - number)
                left = f", about {time_text(seconds)} left at the speed so far"
            comparison.emit(heading(title + left))
            model, candidates, choice = fold.compare(table)
            test, page = measure_candidates(fold, table, model, candidates, choice)
            summary = make_summary(title, test, links=links)
            write_evaluation_page(fold.output / REPORT, *page, summary)
            write_document(file, test.dump())
            done += 1
        results.append(MeasuredTest.read(file, fix="remove it"))
    return results
