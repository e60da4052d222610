"""`everest train`: lists, recipe, pre-training, fine-tuning and the test of one project."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from everest import stages
from everest.config.heads import Task
from everest.errors import UserError
from everest.project.folds import measure_folds, measure_run
from everest.project.plan import make_plan
from everest.project.request import (
    FINETUNE,
    FOLDS,
    PRETRAIN,
    PROJECT,
    RECIPE,
    RESULT,
    Request,
    clear,
    find_project,
    write_document,
)
from everest.project.verdict import judge, next_commands
from everest.system.events import Report, notice, silent
from everest.system.files import unfinished_folder, write_text
from everest.system.json_text import read_json
from everest.system.locks import sole_writer
from everest.system.run_folder import RunFolder


def train(
    videos: str | Path,
    *,
    annotations: str | Path | None = None,
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
        annotations: bouts in the recordings, in a file of any kind that `everest prepare annotations` reads.
        unlabeled: a folder or list of videos to pre-train on first.
        output: the folder of the project; None: `runs/train/NAME`.
        group: what keeps videos together in one list, as `everest prepare split --group`; None: the column
            `group` of a list, the recording of a window, else each video alone.
        task: single-label, multi-label or regression; None: as the labels show.
        folds: leave each of so many parts of the groups out in turn; the last model learns from all videos.
        hours: at most for all training, by the speed measured on this machine.
        overrides: `section.key=value` texts, which win over the suggested recipe.
        overwrite: replace the project in `output`.
        dry_run: only make the plan, and write nothing.
        report: receives the progress and notices (everest.system.events).
    Returns:
        The document of `everest train --json`, with `dry_run` the plan.
    Raises:
        UserError: the videos, the labels or the environment do not allow it; see everest.errors.
    """
    request = Request(
        videos=_absolute(videos),
        annotations=None if annotations is None else _absolute(annotations),
        unlabeled=None if unlabeled is None else _absolute(unlabeled),
        group=group,
        task=task,
        folds=folds,
        hours=hours,
        overrides=tuple(overrides),
    )
    if dry_run:
        request.check(None)
        with TemporaryDirectory(prefix="everest-train-") as trial:
            plan = make_plan(request, Path(trial), report)
            return {**plan.to_dict(), "lines": plan.lines()}
    folder = Path(output or Path("runs", "train", Path(request.videos).stem)).absolute()
    request.check(folder)
    is_new = not folder.exists()
    try:
        with sole_writer(folder / PROJECT):
            project = find_project(folder, request, overwrite=overwrite)
            if project is None:
                project = _start(request, folder, report)
            return _train(request, project, folder, report)
    finally:
        with suppress(OSError):  # it holds files, as after a success
            folder.rmdir() if is_new else None


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _start(request: Request, folder: Path, report: Report) -> dict[str, Any]:
    """Make the plan, and write it, the request last. After an error nothing of it is left."""
    if (folder / PROJECT).exists():  # which is removed only if its successor can be made
        with TemporaryDirectory(prefix="everest-train-") as trial:
            make_plan(request, Path(trial), silent)
    try:
        with unfinished_folder(folder, PROJECT):
            clear(folder, marked=True)
            plan = make_plan(request, folder, report)
            for line in plan.lines():
                report(notice(line))
            write_text(folder / RECIPE, plan.suggestion.text)
            lists = plan.lists
            kept = {"root": lists.section["root"], "folds": list(lists.folds), "window": lists.window}
            document = {"request": request.values(), **kept}
            write_document(folder / PROJECT, document)
    except UserError:
        clear(folder, marked=False)
        raise
    return document


def _train(request: Request, project: dict[str, Any], folder: Path, report: Report) -> dict[str, Any]:
    """Run the stages that are not finished; each resumes its own run."""
    if (folder / RESULT).exists():
        report(notice(f"{folder}: is finished; --overwrite trains again"))
        return read_json(folder / RESULT)
    recipe, overrides, init = folder / RECIPE, list(request.overrides), None
    if request.unlabeled is not None:
        report(notice("pre-training"))
        init = stages.pretrain(recipe, output=folder / PRETRAIN, overrides=overrides, report=report)
    finetune = partial(stages.finetune, recipe, init=init, report=report)
    pooled = None
    if project["folds"]:
        pooled = measure_folds(request, project, folder / FOLDS, finetune, report)
    report(notice("fine-tuning" if pooled is None else "fine-tuning on all videos"))
    run = finetune(output=folder / FINETUNE, overrides=overrides)
    measured = pooled or measure_run(run, folder, request, project["window"], report)
    weights = RunFolder(run)
    document = {
        **measured,
        "checkpoint": str(weights.best if weights.best.exists() else weights.weights),
        "judgment": judge(measured),
        "next": next_commands(run, measured, window=project["window"]),
    }
    write_document(folder / RESULT, document)
    return document
